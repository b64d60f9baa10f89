"""Activations as int8, a scale for each token."""

from typing import Literal

import torch
from torch import Tensor

from shoestring.lowbit.format import straight_through

Activations = Literal["none", "int8"]
"""What the inputs of a linear layer are rounded to."""

LARGEST = 127


def quantise_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8 [..., columns], scales float32 [..., 1]) of activations [..., columns], a token being the last dimension.

        s = max |x| / 127,    x_q = round(x / s) in [-127, 127], halves to the even code

    as in BitNet b1.58 (Ma et al. (2024), arXiv:2402.17764), whose published code divides by max(max |x|, 1e-5) and lets -128
    through. All in float32. A token of zeros, or so small that s underflows, has s = 0 and codes 0. One that holds a NaN or
    an infinity has a scale that is not finite, so that whatever it is multiplied with is not either.
    """
    codes, scales = _round(x)
    return codes.nan_to_num(0.0).to(torch.int8), scales


def fake_tokens(x: Tensor) -> Tensor:
    """The numbers that `quantise_tokens` stands for, in the type of `x`, with straight-through gradients."""
    codes, scales = _round(x.detach())
    return straight_through(x, (codes * scales).to(x.dtype))


def _round(x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes as float32, scales)."""
    x = x.float()
    scales = x.abs().amax(-1, keepdim=True) / LARGEST if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)
    return (x / torch.where(scales == 0, 1.0, scales)).clamp(-LARGEST, LARGEST).round(), scales
