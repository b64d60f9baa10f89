"""A causal convolution of a few taps, each channel by itself."""

import torch
from torch import Tensor


def short_convolution(
    x: Tensor, taps: Tensor, past: Tensor | None = None, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y [B, T, D], x with what came before it [B, K - 1 + T, D]), where y_t = sum_j taps[:, K - 1 - j] x_{t - j}.

    x: [B, T, D]. taps: [D, K], that of the token itself last.
    past: [B, K - 1, D], the inputs before; None: zeros. documents: [B, T]: no tap reaches into another.
    """
    count, length = taps.shape[1], x.shape[1]
    if past is None:
        past = x.new_zeros(x.shape[0], count - 1, x.shape[2])
    whole = torch.cat((past.to(x.dtype), x), 1)
    weights = taps.to(x.dtype)
    found = x * weights[:, -1]
    for back in range(1, count):
        term = whole[:, count - 1 - back : count - 1 - back + length] * weights[:, count - 1 - back]
        if documents is not None:
            same = torch.zeros_like(documents, dtype=torch.bool)
            same[:, back:] = documents[:, back:] == documents[:, :-back]
            term = term * same[..., None]
        found = found + term
    return found, whole
