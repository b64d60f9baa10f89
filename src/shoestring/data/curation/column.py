"""What a curator says of each document: values by name, and whether it is dropped and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

KEPT = -1
"""The number that stands for no reason: the document is kept."""


@dataclass(frozen=True, eq=False)
class Column:
    """What a curator found of n documents.

    dropped: int16 [n], `KEPT`, or the number of the reason in `reasons`.
    reasons: why documents are dropped, in a few words each.
    values: what else was found, by name, [n] each: scores, clusters, of what a document is a copy.
    notes: what is to be known of it for people, a line each.
    """

    dropped: np.ndarray
    reasons: Sequence[str] = ()
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        count = len(self.dropped)
        if any(len(value) != count for value in self.values.values()):
            raise ValueError("a column has a value for each document")
        if count and not (self.dropped.min() >= KEPT and self.dropped.max() < len(self.reasons)):
            raise ValueError("a document is dropped for a reason that the column names")

    @classmethod
    def keeping(cls, values: Mapping[str, np.ndarray], notes: Sequence[str] = ()) -> "Column":
        """Values alone: no document is dropped."""
        count = len(next(iter(values.values())))
        return cls(np.full(count, KEPT, np.int16), (), values, notes)

    @classmethod
    def dropping(
        cls, dropped: np.ndarray, reason: str, values: Mapping[str, np.ndarray], notes: Sequence[str] = ()
    ) -> "Column":
        """One reason alone. dropped: bool [n]."""
        return cls(np.where(dropped, 0, KEPT).astype(np.int16), (reason,), values, notes)

    @property
    def kept(self) -> np.ndarray:
        """bool [n]."""
        return self.dropped == KEPT
