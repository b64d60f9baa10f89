"""Curators one after the other, each on what those before it kept; and the card that says what was dropped, why, at what cost."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoestring.budget.charge import NOTHING, Charge
from shoestring.config import Choice
from shoestring.data.curation.account import Account
from shoestring.data.curation.column import KEPT, Column
from shoestring.data.curation.curator import Curator
from shoestring.data.curation.documents import Documents

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Amount:
    """So many documents, and bytes of UTF-8 text in them."""

    documents: int
    bytes: int

    @classmethod
    def of(cls, sizes: np.ndarray) -> "Amount":
        return cls(len(sizes), int(sizes.sum()))


@dataclass(frozen=True)
class Step:
    """What one curator did.

    name, options: the method. seen: what it was given. dropped: by reason. seconds, spent: what that took now; next to nothing
    where it was worked out before. notes: what it says of it.
    """

    name: str
    options: Mapping[str, Any]
    seen: Amount
    dropped: Mapping[str, Amount]
    seconds: float
    spent: Charge = NOTHING
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Curated:
    """What curating came to.

    documents: all there were. kept: bool [n].
    reason: int16 [n], why a document was dropped, as a place in `reasons`; -1 where none was.
    reasons: '<curator>: <reason>'.
    values: columns by '<curator>.<name>', [n]; NaN or -1 for a document that the curator did not see.
    steps: what each curator did.
    """

    documents: Documents
    kept: np.ndarray
    reason: np.ndarray
    reasons: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    steps: tuple[Step, ...] = field(default=())

    @property
    def remaining(self) -> Documents:
        """Those that are kept."""
        return self.documents.only(self.kept)


def curate(documents: Documents, curators: Sequence[Choice], account: Account) -> Curated:
    """Apply curators in order; each sees what those before it kept. Raises: OutOfTime, UsageError."""
    count = len(documents)
    kept, reason = np.ones(count, dtype=bool), np.full(count, KEPT, dtype=np.int16)
    reasons: list[str] = []
    values: dict[str, np.ndarray] = {}
    steps = []
    for choice in curators:
        curator: Curator = choice.build()
        here = documents.only(kept)
        began, spent = account.now(), account.spent
        account.check()
        log.info(f"{choice.name}: {len(here):,} documents, {here.bytes.sum() / 1e6:,.1f} MB")
        column = curator(here, account)
        places = np.flatnonzero(kept)
        lost = _dropped(column, here)
        for name, value in column.values.items():
            values[f"{choice.name}.{name}"] = _scattered(value, places, count)
        out = ~column.kept
        reason[places[out]] = column.dropped[out] + len(reasons)
        reasons += [f"{choice.name}: {why}" for why in column.reasons]
        kept[places[out]] = False
        taken = account.now() - began
        step = Step(
            choice.name,
            dict(choice.options),
            Amount.of(here.bytes),
            lost,
            taken,
            account.spent + -spent,
            tuple(column.notes),
        )
        steps.append(step)
        _tell(step)
    return Curated(documents, kept, reason, tuple(reasons), values, tuple(steps))


def _dropped(column: Column, documents: Documents) -> dict[str, Amount]:
    found = {why: Amount.of(documents.bytes[column.dropped == place]) for place, why in enumerate(column.reasons)}
    return {why: amount for why, amount in found.items() if amount.documents}


def _scattered(value: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """A value for each of `count` documents: those of the `places`, and NaN or -1 for the others."""
    if len(places) == count:
        return np.asarray(value)
    missing: float = np.nan if value.dtype.kind == "f" else -1
    whole = np.full((count, *value.shape[1:]), missing, dtype=value.dtype)
    whole[places] = value
    return whole


def _tell(step: Step) -> None:
    gone = sum(amount.documents for amount in step.dropped.values())
    log.info(f"  dropped {gone:,} documents in {step.seconds:.1f} s")
    for why, amount in sorted(step.dropped.items(), key=lambda item: -item[1].documents):
        log.info(f"    {amount.documents:>9,}  {why}  ({amount.bytes / 1e6:,.1f} MB)")
    for note in step.notes:
        log.info(f"  {note}")
