"""Sequences of several domains in one stream: a mixture picks the domain of each, and each domain is read in its own order."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from shoestring.contract.batch import Batch
from shoestring.data.mixture import Mixture
from shoestring.data.windows import BatchSource, Windows
from shoestring.errors import ShoestringError

_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: its multiples modulo 2^64 are as evenly spread as can be."""


class Mixed:
    """The `Stream` of a mixture.

    names, sources: of the domains, in order. Sequence i of a domain is the same whatever the mixture does: what a checkpoint
    keeps is how many were taken of each, and what the mixture remembers.
    seed: of the order of domains. Sequence number n of the whole is of the domain in whose part of [0, 1) the number
    (offset + n / golden ratio) mod 1 falls, the parts being as long as the weights: of any stretch of n sequences, a domain
    of weight w has n w to within a few, where independent draws would miss by sqrt(n w).
    worker, workers: the part of each batch that this process reads, of how many equal parts; the domains are picked for all.

    A batch has 'domain' among its extra: int64 [B], the number of each row's domain.
    """

    def __init__(
        self,
        names: Sequence[str],
        sources: Sequence[BatchSource],
        mixture: Mixture,
        seed: int = 0,
        *,
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        self.names, self.sources, self.mixture = tuple(names), tuple(sources), mixture
        self.worker, self.workers = worker, workers
        self._offset = (seed * 0xD6E8FEB86659FD93 + _GOLDEN // 3) % (1 << 64)
        self._taken = np.zeros(len(self.names), dtype=np.int64)

    def picks(self, start: int, count: int, weights: np.ndarray) -> np.ndarray:
        """int64 [count]: the domains of sequences start .. start+count-1 under these weights."""
        numbers = np.arange(start, start + count, dtype=np.uint64)
        places = (numbers * np.uint64(_GOLDEN) + np.uint64(self._offset)) >> np.uint64(11)
        bounds = np.cumsum(weights)[:-1]
        found = np.searchsorted(bounds, places / float(1 << 53), side="right")
        # rounding may leave a sliver after the last weight: it is nobody's, so the last domain that has any takes it
        return np.asarray(np.minimum(found, np.flatnonzero(weights > 0)[-1]))

    def batch(self, start: int, count: int) -> Batch:
        weights = self.mixture.weights(0.0)
        before = np.bincount(self.picks(0, start, weights), minlength=len(self.names)) if start else 0 * self._taken
        return self._rows(self.picks(start, count, weights), before)

    def take(self, start: int, count: int, progress: float) -> Batch:
        if start != self._taken.sum():
            raise ShoestringError(
                f"{start} sequences were taken of the run, and {self._taken.sum()} of its domains: they do not belong together"
            )
        picks = self.picks(start, count, self.mixture.weights(progress))
        found = self._rows(picks, self._taken)
        self._taken = self._taken + np.bincount(picks, minlength=len(self.names))
        return found

    def _rows(self, picks: np.ndarray, before: np.ndarray) -> Batch:
        """The rows of these domains, each domain going on after `before` sequences of it; this worker's part of them."""
        own = len(picks) // self.workers
        part = slice(self.worker * own, (self.worker + 1) * own)
        pieces, places = [], []
        for domain, source in enumerate(self.sources):
            mine = np.flatnonzero(picks == domain)
            here = np.flatnonzero((mine >= part.start) & (mine < part.stop))
            if len(here):
                pieces.append(source.batch(int(before[domain] + here[0]), len(here)))
                places.append(mine[here] - part.start)
        order = np.argsort(np.concatenate(places))
        whole = Batch.joined(pieces).take(torch.from_numpy(order))
        domains = torch.from_numpy(picks[part].astype(np.int64))
        return Batch(whole.inputs, whole.targets, whole.weights, {**whole.extra, "domain": domains})

    @property
    def taken(self) -> dict[str, int]:
        """Sequences taken of each domain."""
        return dict(zip(self.names, self._taken.tolist(), strict=True))

    def hear(self, progress: float, losses: Mapping[str, float]) -> None:
        self.mixture.hear(progress, losses)

    def state(self) -> Any:
        return {"taken": self.taken, "mixture": self.mixture.state()}

    def restore(self, state: Any) -> None:
        if set(state["taken"]) != set(self.names):
            raise ShoestringError(f"the checkpoint is of other sources: {', '.join(state['taken'])}")
        self._taken = np.array([state["taken"][name] for name in self.names], dtype=np.int64)
        self.mixture.restore(state["mixture"])


class InTurn:
    """Windows of several domains, one of each in turn; a domain that has no more is passed over: a `BatchSource`, read once.

    So whatever part of it is read, from the first on, has as many windows of each domain as can be. A batch has 'domain' among
    its extra, as that of `Mixed`.
    """

    def __init__(self, windows: Sequence[Windows]) -> None:
        self.windows = tuple(windows)
        domains = np.concatenate([np.full(len(each), place) for place, each in enumerate(self.windows)])
        turns = np.concatenate([np.arange(len(each)) for each in self.windows])
        order = np.lexsort((domains, turns))
        self._domains, self._turns = domains[order], turns[order]

    def __len__(self) -> int:
        return len(self._domains)

    def batch(self, start: int, count: int) -> Batch:
        domains, turns = self._domains[start : start + count], self._turns[start : start + count]
        pieces = [
            self.windows[domain].batch(turn, 1) for domain, turn in zip(domains.tolist(), turns.tolist(), strict=True)
        ]
        whole = Batch.joined(pieces)
        extra = {**whole.extra, "domain": torch.from_numpy(domains.astype(np.int64))}
        return Batch(whole.inputs, whole.targets, whole.weights, extra)
