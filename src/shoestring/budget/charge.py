"""What was spent, in counts that add up: one vocabulary for every account of a ledger."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount spent. Charges add up.

    flops: floating-point operations.
    tokens: targets trained on.
    read: positions that a model read without training on them; those reused are not among them.
    reused: positions whose state was there already, as another request had the same beginning.
    written: tokens of answers, and of candidates kept to their end.
    wasted: positions computed in vain: drafts refused, branches dropped, and what was computed again.
    calls: of a model, by whoever asked it.
    moved: bytes of weights and caches that were read.
    sent, received: bytes over a network.
    """

    flops: int = 0
    tokens: int = 0
    read: int = 0
    reused: int = 0
    written: int = 0
    wasted: int = 0
    calls: int = 0
    moved: int = 0
    sent: int = 0
    received: int = 0

    def __add__(self, other: "Charge") -> "Charge":
        return Charge(*(getattr(self, name) + getattr(other, name) for name in FIELDS))

    def __neg__(self) -> "Charge":
        return Charge(*(-getattr(self, name) for name in FIELDS))

    def as_dict(self) -> dict[str, int]:
        """The counts that are not zero, by name."""
        return {name: getattr(self, name) for name in FIELDS if getattr(self, name)}


FIELDS = tuple(field.name for field in fields(Charge))
NOTHING = Charge()
