"""An embedding that is narrower than the model: what stands between its table and the stream, and on the way back to the head.

A registered method of kind 'embedding' is a subclass of `NarrowEmbedding` with a constructor `(width, *, options)`. The table
itself is the model's `embedding`, [vocabulary, inside].
"""

import abc
from typing import NamedTuple

from torch import Tensor, nn

from shoestring.contract.anatomy import Slice
from shoestring.contract.model import Head


class NarrowEmbedding(nn.Module, abc.ABC):
    """inside: width of the table."""

    inside: int

    @abc.abstractmethod
    def forward(self, vectors: Tensor) -> Tensor:
        """Rows of the table [..., inside] -> [..., width]."""

    @abc.abstractmethod
    def narrowed(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., width] -> [..., inside], as the rows of a tied table take them."""

    @abc.abstractmethod
    def flops(self, places: int, backward: bool = False, inputs: bool = True) -> int:
        """Operations of either way at so many places. inputs: whether what it reads takes a gradient."""

    @abc.abstractmethod
    def width_slices(self) -> tuple[Slice, ...]:
        """Where its weights lie along the width, by names in this module."""


class NarrowedHead(NamedTuple):
    """A `Head` whose table is narrower than the hidden states: there is no one matrix of logits.

    narrow: makes them as narrow. table: the head of those.
    """

    narrow: NarrowEmbedding
    table: Head
    weight: None = None

    def logits(self, hidden: Tensor) -> Tensor:
        return self.table.logits(self.narrow.narrowed(hidden))

    def flops(self, places: int) -> int:
        return self.narrow.flops(places) + self.table.flops(places)
