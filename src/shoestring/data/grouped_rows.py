"""Pieces of documents in groups of rows, the groups drawn in a new order each epoch."""

from typing import ClassVar

import numpy as np

from shoestring.contract.batch import Batch
from shoestring.data.order import Permutation
from shoestring.data.pieces import Pieces


class GroupedRows:
    """A piece a row. A batch is as wide as its longest row. The last group is filled up with the first rows.

    pieces: of documents.
    order: [pieces] int64, the numbers of the pieces, those of a group one after the other.
    seed: of the order of groups.
    group: rows of a group.
    weigh: 'tokens' counts every target the same; 'documents' every document.
    """

    varies: ClassVar[bool] = True

    def __init__(self, pieces: Pieces, order: np.ndarray, seed: int, group: int, weigh: str) -> None:
        self.pieces, self.seed, self.group, self.weigh, self._order = pieces, seed, group, weigh, order
        self._groups = -(-len(order) // group)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self._groups * self.group

    def row(self, sequence: int) -> int:
        """The piece of a sequence of the global order."""
        turn, within = divmod(sequence, self.group)
        epoch, place = divmod(turn, self._groups)
        group = int(Permutation(self._groups, self.seed, epoch)(np.array([place]))[0])
        return int(self._order[(group * self.group + within) % len(self._order)])

    def batch(self, start: int, count: int) -> Batch:
        """`count` rows of the global order, from `start` on."""
        rows = np.array([self.row(sequence) for sequence in range(start, start + count)])
        width = int(self.pieces.lengths[rows].max())
        return self.pieces.batch([row[None] for row in rows], width, weigh=self.weigh == "documents")
