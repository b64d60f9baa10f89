"""Batches of windows: sequence i of the global order is a pure function of (seed, i), whoever asks and however many."""

from typing import Protocol

import numpy as np
import torch

from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.data.config import Packing
from shoestring.data.order import Permutation
from shoestring.data.store import TokenStore
from shoestring.errors import UsageError


class BatchSource(Protocol):
    """What the training loop reads: any stretch of an endless order of sequences, by number."""

    def batch(self, start: int, count: int) -> Batch:
        """Sequences start .. start+count-1."""


class Windows:
    """The windows of a store, in an order for each epoch: a `BatchSource`.

    A window is `context` + 1 tokens, the last of one being the first of the next, so an epoch has each token as a
    target once; the first token of the store and a rest shorter than a window are none. Sequence i is the window that
    epoch i // len(self) has at place i % len(self): to resume is to go on from an integer, and workers that split a
    stretch read together what one would.

    packing: 'stream' lets windows run across documents. 'isolated' has the same windows, positions from 0 at each
    document (and at the window's start), documents numbered from 0 in each row, and ignores the target that is the
    first token of another document. 'whole' is isolated too, and a window is as many whole documents, one after the other as
    they lie, as fit: the rest of it is padding, and a document longer than a window is cut.
    shuffle: False is the order of the store, every epoch.

    What the store marks as not to be learnt is no target. Where it has several kinds of marks, the batch's extra 'mark' [B, T] says
    of which each target is.
    Raises: UsageError where the store is smaller than a window.
    """

    def __init__(
        self, store: TokenStore, context: int, seed: int = 0, packing: Packing = "stream", shuffle: bool = True
    ) -> None:
        if context < 1:
            raise ValueError(f"context = {context}: a window has at least one target")
        if len(store) < context + 1 and packing != "whole":
            raise UsageError(f"{len(store)} tokens are too few: a context of {context} needs {context + 1}")
        self.store, self.context, self.seed, self.packing, self.shuffle = store, context, seed, packing, shuffle
        self._places = _whole(store, context) if packing == "whole" else None
        self._count = (len(store) - 1) // context if self._places is None else len(self._places)
        self._kinds = store.marks is not None and any(shard.max(initial=0) > 1 for shard in store.marks.shards)
        if not self._count:
            raise UsageError("there is no document of two tokens or more to learn from")

    def __len__(self) -> int:
        """Windows in an epoch."""
        return self._count

    def order(self, start: int, count: int) -> np.ndarray:
        """int64 [count]: the windows that are sequences start .. start+count-1; window w is at token w * context."""
        if start < 0 or count < 1:
            raise ValueError(
                f"sequences {start} .. {start} + {count}: a stretch starts at 0 or later and holds one or more"
            )
        sequences = np.arange(start, start + count, dtype=np.int64)
        epochs, places = np.divmod(sequences, self._count)
        if self.shuffle:
            for epoch in np.unique(epochs):
                here = epochs == epoch
                places[here] = Permutation(self._count, self.seed, int(epoch))(places[here])
        return places

    def batch(self, start: int, count: int) -> Batch:
        chosen, length = self.order(start, count), self.context + 1
        if self._places is None:
            starts = chosen * self.context
            rows = self.store.rows(starts, length)
            learnt = None if self.store.marks is None else self.store.marks.rows(starts, length)
        else:
            starts, stops = self._places[chosen].T
            rows, learnt = _padded(self.store, starts, stops, length)
        inputs, targets = rows[:, :-1].copy(), rows[:, 1:].copy()  # contiguous, and apart: targets are written to
        if learnt is not None:
            targets[learnt[:, 1:] == 0] = IGNORED
        extra = {"mark": torch.from_numpy(learnt[:, 1:].astype(np.int64))} if self._kinds and learnt is not None else {}
        if self.packing == "stream":
            return Batch(Inputs(torch.from_numpy(inputs)), torch.from_numpy(targets), extra=extra)
        first = self._firsts(starts)
        targets[first[:, 1:]] = IGNORED
        documents = np.cumsum(first[:, :-1], axis=1) - 1
        places = np.arange(self.context)
        positions = places - np.maximum.accumulate(np.where(first[:, :-1], places, 0), axis=1)
        read = Inputs(*(torch.from_numpy(array) for array in (inputs, positions, documents)))
        return Batch(read, torch.from_numpy(targets), extra=extra)

    def _firsts(self, starts: np.ndarray) -> np.ndarray:
        """bool [B, context + 1]: where a document starts in each window; its first place counts as a start."""
        first = np.zeros((len(starts), self.context + 1), dtype=bool)
        first[:, 0] = True
        bounds = np.searchsorted(self.store.document_starts, [starts, starts + self.context + 1])
        for row, (start, low, high) in enumerate(zip(starts, *bounds, strict=True)):
            first[row, self.store.document_starts[low:high] - start] = True
        return first


def _padded(store: TokenStore, starts: np.ndarray, stops: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, what of them is learnt), int64 [windows, length] each: zeros after the end of a window."""
    rows, learnt = np.zeros((len(starts), length), dtype=np.int64), np.zeros((len(starts), length), dtype=np.int64)
    for row, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        store.read(start, stop, rows[row])
        if store.marks is None:
            learnt[row, : stop - start] = 1
        else:
            store.marks.read(start, stop, learnt[row])
    return rows, learnt


def _whole(store: TokenStore, context: int) -> np.ndarray:
    """int64 [windows, 2]: where each window of whole documents starts and stops, one after the other as they lie."""
    length, found = context + 1, list[tuple[int, int]]()
    stops = np.append(store.document_starts[1:], len(store)).tolist()
    start = 0
    for first, stop in zip(store.document_starts.tolist(), stops, strict=True):
        if stop - start <= length:
            continue
        if first > start:  # it does not fit beside those before it
            found.append((start, first))
            start = first
        while stop - start > length:
            found.append((start, start + length))
            start += context  # the last token of one piece is the first of the next, as of windows
    if len(store) - start > 1:
        found.append((start, len(store)))
    return np.array([window for window in found if window[1] - window[0] > 1], dtype=np.int64).reshape(-1, 2)
