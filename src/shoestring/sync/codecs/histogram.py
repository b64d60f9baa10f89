"""Counting floats by the front of their bit patterns: a histogram of any range whose bins are 0.1 % wide.

A key is the sign, the exponent and the first 10 binary digits of the fraction of a float32, 19 bits. Counts are integers,
so that they are the same whatever the device, the number of threads and the order, where a sort of 10 million entries
takes 50 times as long and a sum of floats depends on its order.
"""

import torch
from torch import Tensor

DROPPED = 13
MAGNITUDES = 1 << 18
"""Keys of one sign."""


def keys(flat: Tensor) -> Tensor:
    """int32 [entries] in 0 .. 2 MAGNITUDES - 1: negative entries first, each sign in order of magnitude."""
    return (flat.view(torch.int32) >> DROPPED).add_(MAGNITUDES)


def distribution(key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The keys that occur in order of value [m], the middle of the bin of each, float64, and how many entries it has.

    On the CPU whatever the device of the keys, since it is short: at most 2 MAGNITUDES.
    """
    counts = torch.bincount(key, minlength=2 * MAGNITUDES).cpu()
    found = counts.nonzero().flatten()
    negative = int((found < MAGNITUDES).sum())
    found[:negative] = found[:negative].flip(0)
    magnitude = (((found & MAGNITUDES - 1) << DROPPED) + (1 << DROPPED - 1)).to(torch.int32).view(torch.float32)
    return found, torch.where(found < MAGNITUDES, -magnitude, magnitude).double(), counts[found]


def largest(flat: Tensor, count: int) -> Tensor:
    """The places of the `count` entries of largest magnitude, in ascending order; of equal ones the first; int64."""
    key = keys(flat) & MAGNITUDES - 1
    reached = torch.bincount(key, minlength=MAGNITUDES).flip(0).cumsum(0)
    border = MAGNITUDES - 1 - int((reached < count).sum())
    near = (key >= border).nonzero().flatten()
    surely = key[near] > border
    rest = near[~surely]
    order = flat[rest].abs().sort(descending=True, stable=True).indices
    chosen = torch.cat([near[surely], rest[order[: count - int(surely.sum())]]])
    return chosen.sort().values
