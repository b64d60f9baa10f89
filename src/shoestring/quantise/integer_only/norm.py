"""RMSNorm and LayerNorm of integers."""

import torch
from torch import Tensor, nn

from shoestring.errors import UsageError
from shoestring.quantise.integer_only.arithmetic import STREAM_BITS, fixed_point, inverse_root, rounded_shift, saturated

WIDEST = 1 << 14
"""Features, at most: sums of squares stay below 2^60."""

POINT = 24
"""Bits behind the point of x / |x|."""

BIAS_BITS = 8
"""Bits behind the point of a bias."""


class IntegerOnlyNorm(nn.Module):
    """y = g x / sqrt(mean(x^2) + epsilon), or with x - mean(x) in place of x and a bias: [..., width] -> int8 or int16.

    As I-BERT (arXiv:2101.01321, section 3.6) the root is an integer one. Different from the paper: its reciprocal is what x is
    multiplied with, of 32 bits, and the gain is a fixed-point multiplier of each feature.

    Error: 0.53 of the unit of an int8 output at most, for gains of up to 3. Where the mean of 23 bits is taken away that holds
    for numbers of more than 10 bits, as the mean is rounded to a whole one.

    centred: whether the mean is taken away; there is a bias then.
    bits: of what it reads, 23 at most; fewer are shifted up to as many.
    multiplier: int32 [width]; shift: the gains, with the scales. epsilon: int64, times width, in units of squares of inputs.
    bias: int32 [width], in 2^-8 of the output's unit.
    """

    multiplier: Tensor
    shift: Tensor
    epsilon: Tensor
    bias: Tensor | None

    def __init__(self, width: int, centred: bool, bits: int = STREAM_BITS) -> None:
        super().__init__()
        if width > WIDEST:
            raise UsageError(f"a norm of {width} features: sums of squares of more than {WIDEST} may overflow 64 bits")
        self.centred, self.up = centred, STREAM_BITS - bits
        self.register_buffer("multiplier", torch.zeros(width, dtype=torch.int32))
        self.register_buffer("shift", torch.ones((), dtype=torch.int32))
        self.register_buffer("epsilon", torch.zeros((), dtype=torch.int64))
        self.register_buffer("bias", torch.zeros(width, dtype=torch.int32) if centred else None)

    def fill(self, weight: Tensor, bias: Tensor | None, epsilon: float, reads: float, writes: Tensor | float) -> None:
        """Take in a norm. reads: the scale of what it reads. writes: of what it writes, one or [width].

        A gain below 0 has a multiplier below 0.
        """
        gain, width = weight.detach().double(), len(weight)
        multiplier, shift = fixed_point(gain.abs() * width**0.5 / writes / 2**POINT)
        self.multiplier.copy_(torch.where(gain < 0, -multiplier, multiplier))
        self.shift.fill_(shift)
        self.epsilon.fill_(min(round(epsilon * width / reads**2 * 4**self.up), 1 << 59))
        if self.bias is not None and bias is not None:
            units = bias.detach().double() / writes * 2**BIAS_BITS
            self.bias.copy_(units.round().clamp(-(2**30), 2**30).to(torch.int32))

    def forward(self, x: Tensor, bits: int = 8) -> Tensor:
        """bits: of the outputs."""
        wide = x.to(torch.int64).bitwise_left_shift_(self.up)
        width = wide.shape[-1]
        if self.centred:
            wide.sub_((2 * wide.sum(-1, keepdim=True) + width) // (2 * width))
        squares = (wide * wide).sum(-1, keepdim=True).add_(self.epsilon).clamp_(1, (1 << 60) - 1)
        root, e = inverse_root(squares)
        share = rounded_shift(wide.mul_(root), 61 - POINT - e)  # x / |x|, at most 1
        share.mul_(self.multiplier)
        if self.bias is None:
            return saturated(rounded_shift(share, self.shift), bits)
        found = rounded_shift(share, self.shift - BIAS_BITS).add_(self.bias)
        return saturated(rounded_shift(found, BIAS_BITS), bits)
