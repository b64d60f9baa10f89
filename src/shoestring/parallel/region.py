"""Which part of a tensor a process has: along each dimension some runs of neighbouring indices, one after the other."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

Runs = tuple[tuple[int, int], ...]
"""(first, end) of each run of indices, in the order in which the part has them."""

Region = tuple[Runs, ...]
"""The runs along each dimension of the whole tensor."""


Part = tuple[Tensor, tuple[int, ...], Region]
"""A tensor of this process, the shape of the whole, and which part of it that is."""


def as_whole(tensor: Tensor) -> Part:
    """A tensor that this process has whole."""
    return tensor, tuple(tensor.shape), whole_region(tensor.shape)


def whole_region(shape: Sequence[int]) -> Region:
    """All of a tensor."""
    return tuple(((0, size),) for size in shape)


def runs_of(indices: Tensor) -> Runs:
    """The runs of indices, int64 [n]."""
    if not len(indices):
        return ()
    breaks = (torch.nonzero(indices.diff() != 1).flatten() + 1).tolist()
    bounds = [0, *breaks, len(indices)]
    return tuple((int(indices[first]), int(indices[end - 1]) + 1) for first, end in pairwise(bounds))


def shape_of(region: Region) -> tuple[int, ...]:
    """The shape of a part."""
    return tuple(sum(end - first for first, end in runs) for runs in region)


def overlaps(wanted: Region, there: Region) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """(where in the part `wanted`, where in the part `there`) of each block of what they share, as indices of these parts."""
    shared = [_shared(one, other) for one, other in zip(wanted, there, strict=True)]
    for blocks in product(*shared):
        yield tuple(one for one, _ in blocks), tuple(other for _, other in blocks)


def _shared(wanted: Runs, there: Runs) -> list[tuple[slice, slice]]:
    """Along one dimension."""
    found, here = [], 0
    for first, end in wanted:
        place = 0
        for start, stop in there:
            low, high = max(first, start), min(end, stop)
            if low < high:
                into, out_of = here + low - first, place + low - start
                found.append((slice(into, into + high - low), slice(out_of, out_of + high - low)))
            place += stop - start
        here += end - first
    return found
