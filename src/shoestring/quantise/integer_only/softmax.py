"""Softmax attention of int8 queries, keys and values, by integers alone."""

import math

import torch
from torch import Tensor

from shoestring.quantise.integer_only.arithmetic import LOG_BITS, exponential, product, rounded_shift

FINER = 8
"""Bits behind the point of what is returned, in units of the values."""

SCORE = math.log2(math.e) * 2**LOG_BITS
"""Of a natural exponent, as `exponential` counts it."""

PAIRS = 1 << 18
"""Scores that are held at a time."""

LOW = 7
"""Bits of the lower half of a weight."""


def attended(queries: Tensor, keys: Tensor, values: Tensor, last: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """int64 [n, D]: sum_s w_s v_s / sum_s w_s, with w_s near exp(scale q . k_s), in 2^-8 of the values' unit.

    Each weight has 14 bits, the largest 2^14 - 1, and is not divided before the product: of two halves of 7 bits each is multiplied
    with the values as int8 with int8. One division by the sum of the weights follows. So many small weights are not lost, as they
    would be in 8 bits, each divided first.

    queries: int8 [n, D]. keys, values: int8 [S, D]. last: int64 [n], the place of the last key that each query sees, 0 or more.
    multiplier, shift: make 2^-16 of a power of 2 of a score.
    """
    step = max(PAIRS // len(keys), 1)
    if len(queries) > step:
        parts = zip(queries.split(step), last.split(step), strict=True)
        return torch.cat([attended(some, keys, values, own, multiplier, shift) for some, own in parts])
    scores = product(queries, keys)
    hidden = torch.arange(len(keys), device=keys.device) > last[:, None]
    scores.masked_fill_(hidden, -(1 << 31))
    down = (scores.amax(1, keepdim=True).to(torch.int64) - scores).clamp_(max=(1 << 31) - 1)
    del scores
    weights = exponential(rounded_shift(down.mul_(multiplier), shift)).masked_fill_(hidden, 0)
    del down, hidden
    upper = product((weights >> LOW).to(torch.int8), values.t()).to(torch.int64)
    lower = product((weights & ((1 << LOW) - 1)).to(torch.int8), values.t())
    total = weights.sum(1, keepdim=True)
    del weights
    sums = upper.bitwise_left_shift_(LOW).add_(lower).bitwise_left_shift_(FINER + 1).add_(total)
    return sums // (2 * total)
