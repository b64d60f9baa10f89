"""Queries in blocks of the text: what attention by blocks reads and puts back."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Tiles(NamedTuple):
    """Queries of n blocks of the text. c: places of each; where all are in one block there are no others.

    queries: [B, Hk, n, G, c, D], G queries for each key head. at: [n, c], the place of each. new: how many are queries.
    """

    queries: Tensor
    at: Tensor
    new: int

    def untiled(self, found: Tensor, past: int) -> Tensor:
        """[B, Hk G, T, D] of [B, Hk, n, G, c, D]. past: the place of the first."""
        before = past - int(self.at[0, 0])
        whole = found.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return whole[:, :, before : before + self.new]


def tile_count(past: int, new: int, size: int) -> tuple[int, int]:
    """(n, c): blocks that queries at past, past + 1 ... lie in, and places of each that are computed."""
    count = -(-(past + new) // size) - past // size
    return count, new if count == 1 else size


def tiled(q: Tensor, past: int, size: int, keys: int) -> Tiles:
    """q [B, Hq, T, D], at places past, past + 1 ..., in blocks of `size`. keys: heads of keys."""
    new = q.shape[2]
    count, each = tile_count(past, new, size)
    first = past if count == 1 else past // size * size
    filled = F.pad(q, (0, 0, past - first, first + count * each - past - new)).unflatten(1, (keys, -1))
    at = torch.arange(first, first + count * each, device=q.device).unflatten(0, (count, each))
    return Tiles(filled.unflatten(3, (count, each)).transpose(2, 3), at, new)
