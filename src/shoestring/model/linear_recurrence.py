"""Linear attention with decay, in chunks of matrix products: what linear-attention and state-space mixers compute.

S_t = a_t S_{t-1} + k_t v_t^T and o_t = S_t^T q_t, where a_t in (0, 1] is a number of each head and token. Within a chunk the
sums are a masked product of queries and keys; between chunks the state [K, V] is carried. Lightning Attention-2,
arXiv:2401.04658, for a fixed decay; Transformers are SSMs, arXiv:2405.21060, for one that depends on the text.
"""

import torch
from torch import Tensor

from shoestring.model.fading import chunks, counts, fading

CHUNK = 64
"""Tokens of a chunk."""


def linear_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    keep: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """(o [B, T, H, V], the state after the last token [B, H, K, V] where `keep`, else None).

    q, k: [B, T, H, K], or [B, T, 1, K] where all heads share them.
    v: [B, T, H, V]. log_decay: log a, [B, T, H], at most 0; of float32 or finer.
    state: [B, H, K, V], before the first token; None: zeros.
    documents: [B, T], which the state does not pass from one to the next; None: all one.
    """
    length = q.shape[1]
    if length == 1 and documents is None and (state is not None or keep):
        return _one(q, k, v, log_decay, state, keep)
    q, k, v, log_decay = chunks((q, k, v, log_decay), chunk)  # a token of zeros that does not decay changes nothing
    count = q.shape[2]
    gaps, into, out, through = fading(log_decay.cumsum(-1), documents)
    inside = (q @ k.transpose(-1, -2)) * gaps.exp().to(q.dtype)
    found = inside @ v
    first = 0 if state is not None else 1  # with nothing before it, the first chunk has no state to read
    last = None
    if count > 1 or keep or state is not None:
        written = count if keep else count - 1
        added = (k[:, :, :written] * out[:, :, :written, :, None].exp().to(k.dtype)).transpose(-1, -2) @ v[
            :, :, :written
        ]
        held = state.to(q.dtype) if state is not None else None
        states = [] if held is None else [held]
        for number in range(written):
            own = added[:, :, number]
            held = own if held is None else held * through[:, :, number, None, None].exp().to(own.dtype) + own
            states.append(held)
        last = states[-1] if keep else None
        read = states[: count - first]
        if read:
            far = (q[:, :, first:] * into[:, :, first:, :, None].exp().to(q.dtype)) @ torch.stack(read, 2)
            found = found + far if not first else torch.cat((found[:, :, :1], found[:, :, 1:] + far), 2)
    found = found.permute(0, 2, 3, 1, 4).flatten(1, 2)
    return found[:, :length], last


def _one(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """As `linear_recurrence`, of one token."""
    own = k[:, 0, :, :, None] * v[:, 0, :, None]
    if state is not None:
        own = own + state.to(own.dtype) * log_decay[:, 0, :, None, None].exp().to(own.dtype)
    found = (q[:, 0, :, None] @ own)[:, :, 0]
    return found[:, None], own if keep else None


def linear_recurrence_flops(
    rows: int,
    length: int,
    heads: int,
    key_width: int,
    value_width: int,
    backward: bool,
    *,
    past: int = 0,
    chunk: int = CHUNK,
    key_heads: int = 0,
) -> int:
    """Operations of `linear_recurrence`; without a backward pass, as it is with a cache.

    past: tokens read before. key_heads: of queries and keys, 1 where they are shared by all heads; 0: each has its own.
    """
    if length == 1 and not backward:
        return 2 * rows * heads * key_width * value_width
    size, number, read, written = counts(length, chunk, past, backward)
    inside = number * size * size * (key_width * (key_heads or heads) + value_width * heads)
    between = heads * size * key_width * value_width * (written + read)
    return (3 if backward else 1) * 2 * rows * (inside + between)
