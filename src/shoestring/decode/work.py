"""What a pass reads of a row, and what it finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from shoestring.decode.row import Draft, Row

NONE = Draft()


@dataclass(frozen=True)
class RowWork:
    """What a pass reads of one row.

    row: whose. tokens: the next ones of it. draft: tokens that may follow them.
    outputs: whether logits are wanted, after the last of `tokens` (if any) and after each of the draft.
    """

    row: Row
    tokens: Sequence[int]
    draft: Draft = NONE
    outputs: bool = True

    @property
    def new(self) -> int:
        """Places of the pass that it takes."""
        return len(self.tokens) + len(self.draft.tokens)

    @property
    def wanted(self) -> int:
        """Places whose logits are wanted."""
        return bool(self.tokens) + len(self.draft.tokens) if self.outputs else 0


class Read(NamedTuple):
    """What a pass found of one row. logits: float32 [wanted, V], on the CPU. hidden: [wanted, width]."""

    logits: Tensor
    hidden: Tensor
