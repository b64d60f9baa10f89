"""Documents as pieces that fit a row, each read by itself; and rows made of pieces."""

from collections.abc import Sequence

import numpy as np
import torch

from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.data.store import TokenStore
from shoestring.data.subset import document_bounds
from shoestring.errors import UsageError


class Pieces:
    """The documents of a store, cut where they are longer than a row.

    A document of L tokens, its end token among them, has L - 1 places: each token but the last is read, each but the first
    predicted, where the store marks it as to be learnt. One of more than `context` places is several pieces, in each of which
    reading begins anew; so every target is there once. starts, lengths: int64 [n]: of each piece, where its first token is, and
    its places.
    Raises: UsageError where no document has two tokens.
    """

    def __init__(self, store: TokenStore, context: int) -> None:
        if context < 1:
            raise ValueError(f"context = {context}: a row has at least one place")
        self.store, self.context = store, context
        bounds = document_bounds(store)
        places = np.diff(bounds) - 1
        counts = -(-places // context)
        first = np.repeat(bounds[:-1], counts)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        self.starts = first + number * context
        self.lengths = np.minimum(np.repeat(places, counts) - number * context, context)
        if not len(self.starts):
            raise UsageError("no document has a token to predict: give the corpus more text")

    def __len__(self) -> int:
        return len(self.starts)

    def _learnt(self, piece: int, length: int) -> np.ndarray:
        """bool [length]: which targets of a piece are to be learnt."""
        if self.store.marks is None:
            return np.ones(length, dtype=bool)
        return np.asarray(self.store.marks.rows(self.starts[piece : piece + 1] + 1, length)[0] > 0)

    def batch(self, rows: Sequence[np.ndarray], width: int, *, weigh: bool) -> Batch:
        """Rows of these pieces, one after the other, filled up to `width` places. weigh: each piece counts the same."""
        shape = (len(rows), width)
        inputs, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        positions, documents = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        weights = np.zeros(shape, np.float32)
        for row, pieces in enumerate(rows):
            place = 0
            for number, piece in enumerate(pieces.tolist()):
                length = int(self.lengths[piece])
                tokens = self.store.rows(self.starts[piece : piece + 1], length + 1)[0]
                here = slice(place, place + length)
                learnt = self._learnt(piece, length)
                inputs[row, here], targets[row, here] = tokens[:-1], np.where(learnt, tokens[1:], IGNORED)
                positions[row, here], documents[row, here] = np.arange(length), number
                weights[row, here] = learnt / max(int(learnt.sum()), 1)
                place += length
            documents[row, place:] = len(pieces)  # what fills the row sees no document, and none sees it
            positions[row, place:] = np.arange(width - place)
        read = Inputs(*(torch.from_numpy(array) for array in (inputs, positions, documents)))
        return Batch(read, torch.from_numpy(targets), torch.from_numpy(weights) if weigh else None)
