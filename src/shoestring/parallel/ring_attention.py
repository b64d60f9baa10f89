"""Ring attention: the places of each row divided among processes, which pass keys and values around.

Ring Attention with Blockwise Transformers for Near-Infinite Context (Liu et al. 2023, arXiv:2310.01889). Of n processes, number i
has chunks i and 2n - 1 - i of 2n equal ones: under a causal mask all have as much to do ('zigzag'). Process i begins with its own
keys and values, and n - 1 times passes what it has to the next. Softmax is merged block by block: with m the largest score s so
far, l = sum exp(s - m) and o = sum exp(s - m) v are scaled by exp(m - m') where a block brings a larger one, m'.

Backward, with L = m + log l kept of each query: p = exp(s - L), dv = p' do, ds = p (do v' - sum do o), dq = ds k, dk = ds' q. Keys
and values go round once more; their gradients go with them, and come home after n passes. Formulas from memory of the paper.

torch's own `context_parallel` covers attention kernels of GPUs alone, and this runs on CPUs.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TILE = 256
"""Queries whose scores are in memory at once."""


def own_places(length: int, place: int, parts: int) -> Tensor:
    """int64 [length / parts]: the places of a row that process `place` of `parts` has. length: divisible by 2 parts."""
    chunks = torch.arange(length).chunk(2 * parts)
    return torch.cat((chunks[place], chunks[2 * parts - 1 - place]))


class Ring:
    """Causal attention over rows of which each process has the places that `own_places` says.

    group: the processes, in order of their places. `documents`: set before a pass, of the part of each process, [B, t] int64, equal
    where two places may see each other; None: all may.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.parts, self.place = group, dist.get_world_size(group), dist.get_rank(group)
        self.documents: list[Tensor] | None = None

    def begin(self, documents: Tensor | None) -> None:
        """A pass begins. documents: [B, t], of this process's places. All call it together."""
        self.documents = None
        if documents is not None:
            self.documents = [torch.empty_like(documents) for _ in range(self.parts)]
            dist.all_gather(self.documents, documents.contiguous(), group=self.group)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, Hq, t, D], k, v [B, Hk, t, D], Hk a divisor of Hq -> [B, Hq, t, D]. All call it together."""
        found: Tensor = _RingAttention.apply(q, k, v, self, self.documents)
        return found

    def passed(self, tensor: Tensor) -> "Passing":
        """`tensor` on its way to the next process, and that of the one before on its way here."""
        return Passing(tensor, self)

    def tiles(
        self, source: int, length: int, documents: list[Tensor] | None
    ) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """(queries here, keys of process `source` that they see, which of them: None: all), a few queries at a time.

        length: places of a process.
        """
        half, own = length // 2, source == self.place
        # an earlier process's second chunk is later than all here; a later one's keys are seen by the second chunk alone
        first, most = (half, length) if source > self.place else (0, half if source < self.place else length)
        for start in range(first, length, TILE):
            rows = slice(start, min(start + TILE, length))
            keys = slice(0, rows.stop if own else most)
            seen: Tensor | None = None
            if own:
                places = torch.arange(length)
                seen = places[rows, None] >= places[None, keys]
            if documents is not None:
                same = documents[self.place][:, rows, None] == documents[source][:, None, keys]
                same = same[:, None, None]
                seen = same if seen is None else same & seen.to(same.device)
            yield rows, keys, seen


class Passing:
    """A tensor that goes around; `wait` gives the one that came."""

    def __init__(self, tensor: Tensor, ring: Ring) -> None:
        self.sent, self.came = tensor.contiguous(), torch.empty_like(tensor, memory_format=torch.contiguous_format)
        following, before = (ring.place + 1) % ring.parts, (ring.place - 1) % ring.parts
        sending = dist.isend(self.sent, group=ring.group, group_dst=following)
        coming = dist.irecv(self.came, group=ring.group, group_src=before)
        self.under_way = [each for each in (sending, coming) if each is not None]

    def wait(self) -> Tensor:
        for each in self.under_way:
            each.wait()
        return self.came


class _RingAttention(torch.autograd.Function):
    """[B, Hq, t, D], [B, Hk, t, D] twice -> [B, Hq, t, D]. Sums are float32 or finer."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, documents: list[Tensor] | None) -> Tensor:
        queries = _grouped(q, k.shape[1])
        largest = queries.new_full(queries.shape[:-1], -torch.inf)
        total, mixed = torch.zeros_like(largest), torch.zeros_like(queries)
        held = torch.stack((k, v))
        for step in range(ring.parts):
            coming = ring.passed(held) if step < ring.parts - 1 else None
            keys, values = held.to(queries.dtype).unsqueeze(3)
            # the first block is this process's own, in which each query sees itself: no `largest` is infinite after it
            for rows, seen_keys, seen in ring.tiles((ring.place - step) % ring.parts, q.shape[2], documents):
                scores = _scores(queries[..., rows, :], keys[..., seen_keys, :], seen)
                before = largest[..., rows]
                most = torch.maximum(before, scores.amax(-1))
                shares = (scores - most[..., None]).exp()
                scale = (before - most).exp()
                largest[..., rows] = most
                total[..., rows] = total[..., rows] * scale + shares.sum(-1)
                mixed[..., rows, :] = mixed[..., rows, :] * scale[..., None] + shares @ values[..., seen_keys, :]
            held = held if coming is None else coming.wait()
        mixed = mixed / total[..., None]
        ctx.save_for_backward(q, k, v, mixed, largest + total.log())
        ctx.ring, ctx.documents = ring, documents
        return mixed.flatten(1, 2).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, mixed, normaliser = ctx.saved_tensors
        ring: Ring = ctx.ring
        queries, outer = _grouped(q, k.shape[1]), _grouped(gradients[0], k.shape[1])
        along = (outer * mixed).sum(-1)
        back, held = torch.zeros_like(queries), torch.stack((k, v))
        carried = torch.zeros_like(held, dtype=queries.dtype)  # the gradients of what is held
        for step in range(ring.parts):
            coming = ring.passed(held) if step < ring.parts - 1 else None
            keys, values = held.to(queries.dtype).unsqueeze(3)
            for rows, seen_keys, seen in ring.tiles((ring.place - step) % ring.parts, q.shape[2], ctx.documents):
                asking, given = queries[..., rows, :], outer[..., rows, :]
                scores = _scores(asking, keys[..., seen_keys, :], seen)
                shares = (scores - normaliser[..., rows, None]).exp()
                slopes = shares * (given @ values[..., seen_keys, :].mT - along[..., rows, None]) * q.shape[-1] ** -0.5
                back[..., rows, :] += slopes @ keys[..., seen_keys, :]
                carried[0, ..., seen_keys, :] += (slopes.mT @ asking).sum(2)
                carried[1, ..., seen_keys, :] += (shares.mT @ given).sum(2)
            held = held if coming is None else coming.wait()
            if ring.parts > 1:
                carried = ring.passed(carried).wait()
        return back.flatten(1, 2).to(q.dtype), carried[0].to(k.dtype), carried[1].to(v.dtype), None, None


def _grouped(heads: Tensor, shared: int) -> Tensor:
    """[B, Hq, t, D] -> [B, Hk, Hq / Hk, t, D], float32 or finer."""
    return heads.to(torch.promote_types(heads.dtype, torch.float32)).unflatten(1, (shared, -1))


def _scores(queries: Tensor, keys: Tensor, seen: Tensor | None) -> Tensor:
    """q k' / sqrt(D), minus infinity where a key is not seen."""
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    return scores if seen is None else scores.masked_fill(~seen.to(scores.device), -torch.inf)
