"""A verdict as it is shown: one word, one shape and one colour everywhere on the page, and numbers with their signs."""

import math
from dataclasses import dataclass

from shoestring.report import quantities
from shoestring.report.verdict_records import ComparisonRecord, Word


@dataclass(frozen=True)
class Look:
    """How a verdict is drawn. marker: matplotlib's. glyph: the same shape in text. hollow: drawn as an outline."""

    word: str
    colour: str
    marker: str
    glyph: str
    hollow: bool = False


LOOKS: dict[Word, Look] = {
    "better": Look("better", "s1", "o", "●"),
    "worse": Look("worse", "s2", "s", "■"),
    "no difference shown": Look("no difference shown", "muted", "o", "○", hollow=True),
    "too few pairs": Look("too few pairs", "muted", "d", "◇", hollow=True),
    "not comparable": Look("not comparable", "muted", "x", "×"),
}


def look(comparison: ComparisonRecord) -> Look:
    return LOOKS[comparison.verdict]


def signed(value: float | None, digits: int = 3) -> str:
    """Nats with their sign, in more decimals where they are few: '−0.051', '+0.0042'."""
    if value is None:
        return quantities.NONE
    if 0 < abs(value) < 10 ** (1 - digits):
        digits += 1
    sign = "+" if value > 0 else ""
    return sign + quantities.plain(value, digits)


def interval(comparison: ComparisonRecord) -> str:
    """'−0.071 to −0.031', or a dash where there is none."""
    ends = comparison.ends
    return f"{signed(ends[0])} to {signed(ends[1])}" if ends else quantities.NONE


def confidence(share: float) -> str:
    """'95 %', '98.3 %': in digits enough not to read 100."""
    return quantities.percent(share, 0 if share < 0.995 and math.isclose(100 * share, round(100 * share)) else 2)


def shortened(name: str, longest: int) -> str:
    """A name cut to `longest` characters, where a figure has no room for more."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def usual(sizes: list[float]) -> float:
    """The greatest size that does not dwarf most of the others: what a frame has to hold.

    Going up from the least, the first size over 4 times the one below it, with more than half of them below, is left
    out, and so is what follows. sizes: not empty, none negative.
    """
    ordered = sorted(sizes)
    for place in range(1, len(ordered)):
        if 2 * place > len(ordered) and ordered[place] > 4 * ordered[place - 1]:
            return ordered[place - 1]
    return ordered[-1]
