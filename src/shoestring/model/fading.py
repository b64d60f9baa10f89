"""What recurrences in chunks share: the text cut into chunks, and what is left of a token by the time another is read."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Fading(NamedTuple):
    """Logarithms of what is left of a state, minus infinity where a document has ended. n chunks of C tokens.

    gaps: [B, H, n, C, C], of what token s wrote by the time of token t, s <= t.
    into: [B, H, n, C], of what the chunk began with, by the time of a token.
    out: [B, H, n, C], of what a token wrote, by the end of its chunk.
    through: [B, H, n], of what the chunk began with, by its end.
    """

    gaps: Tensor
    into: Tensor
    out: Tensor
    through: Tensor


def chunks(tensors: Iterable[Tensor], chunk: int) -> list[Tensor]:
    """[B, T, H, ...] -> [B, H, n, C, ...] of each: filled up with zeros to whole chunks. C: `chunk`, or T where that is less."""
    found = []
    for tensor in tensors:
        size = min(chunk, tensor.shape[1])
        padding = -tensor.shape[1] % size
        if padding:
            tensor = torch.cat((tensor, tensor.new_zeros(tensor.shape[0], padding, *tensor.shape[2:])), 1)
        found.append(tensor.unflatten(1, (-1, size)).movedim(3, 1))
    return found


def fading(passed: Tensor, documents: Tensor | None) -> Fading:
    """What is left in chunks.

    passed: [B, H, n, C], the sum of log-decays since the chunk's start. documents: [B, T]; None: all one.
    """
    size = passed.shape[-1]
    seen = torch.ones(size, size, dtype=torch.bool, device=passed.device).tril()
    into, out, through = passed, passed[..., -1:] - passed, passed[..., -1]
    if documents is not None:
        padding = -documents.shape[1] % size
        if padding:
            documents = torch.cat((documents, documents[:, -1:].expand(-1, padding)), 1)
        parts = documents.unflatten(1, (-1, size))
        seen = (seen & (parts[..., :, None] == parts[..., None, :]))[:, None]
        before = torch.cat((parts[:, :1, 0], parts[:, :-1, -1]), 1)  # the document that the carried state is of
        into = into.masked_fill((parts != before[..., None])[:, None], -math.inf)
        out = out.masked_fill((parts != parts[..., -1:])[:, None], -math.inf)
        through = through.masked_fill((parts[..., -1] != before)[:, None], -math.inf)
    gaps = (passed[..., :, None] - passed[..., None, :]).masked_fill(~seen, -math.inf)
    return Fading(gaps, into, out, through)


class Counts(NamedTuple):
    """Chunks of a pass. size: tokens of one. chunks: how many. read: that read a state. written: that write to one."""

    size: int
    chunks: int
    read: int
    written: int


def counts(length: int, chunk: int, past: int, backward: bool) -> Counts:
    """Of a pass of `length` tokens. past: tokens read before. backward: with a backward pass, and so without a cache."""
    size = max(1, min(chunk, length))
    number = -(-length // size)
    return Counts(size, number, max(0, number - (0 if past else 1)), max(0, number - 1) if backward else number)
