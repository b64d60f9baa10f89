"""A candidate against the base on the same terms, whatever both do: are they comparable, and what do the pairs show?

Of the figure that is judged, d_i is the candidate's less the base's, or the logarithm of their ratio, for item i: the mean over
the seeds, as one item's repetitions are alike. The items are independent of each other, and Student's test of d_1 .. d_n is that
of `statistics`. Where an outcome has no items, its seed is one.

A figure that is kept is held where the upper end of the same interval of its difference lies below the margin.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from shoestring.compare.outcome import TEXT, ArmOutcome, Terms
from shoestring.compare.standing import Judgement
from shoestring.compare.statistics import LEAST_PAIRS, Paired, paired

Pair = tuple[ArmOutcome, ArmOutcome]
"""(base, candidate) at one seed, neither of them failed."""


@dataclass(frozen=True)
class Weighed:
    """What the pairs of a candidate and the base show.

    verdict: as of any comparison.
    seeds: that both finished. items: that the test is over.
    found: of the differences, or of the logarithms of the ratios.
    kept: what the differences of a kept figure show; None where none is kept, or the text is.
    changed: the share of texts that are not the base's.
    flags: what a reader must know, one line each.
    """

    candidate: str
    base: str
    verdict: Judgement
    seeds: int
    items: int
    found: Paired
    kept: Paired | None
    changed: float | None
    flags: tuple[str, ...]


def weigh(outcomes: Sequence[ArmOutcome], terms: Terms, base: str, candidate: str, confidence: float = 0.95) -> Weighed:
    """One candidate against the base, on all outcomes that there are."""
    own = {each.seed: each for each in outcomes if each.arm == candidate}
    bases = {each.seed: each for each in outcomes if each.arm == base}
    both = [(bases[seed], own[seed]) for seed in bases if seed in own]
    pairs = [pair for pair in both if not any(each.failure for each in pair)]
    flags = [
        f"'{each.arm}' failed at seed {each.seed} ({each.failure}): not among the pairs"
        for pair in both
        for each in pair
        if each.failure
    ]
    wrong = [*_unequal(pairs, terms), *_other_items(pairs)]
    if wrong:
        nothing = paired([], confidence)
        return Weighed(candidate, base, "not comparable", len(pairs), 0, nothing, None, None, (*flags, *wrong))
    ratio = terms.scale == "ratio"
    values = _by_item(pairs, terms.judge, _log_ratio if ratio else _difference)
    # what a ratio is made of has no size by which to judge rounding but its own, 1
    size = 1.0 if ratio else max((abs(v) for p in pairs for each in p for v in _values(each, terms.judge)), default=0.0)
    found = paired(values, confidence, size)
    kept = None if terms.keep in (None, TEXT) else paired(_by_item(pairs, terms.keep or "", _difference), confidence)
    changed = _changed(pairs)
    lost = _given_up(terms, kept, changed)
    verdict: Judgement = "no difference shown"
    if lost or (both and not pairs):
        verdict = "not comparable"
    elif len(values) < LEAST_PAIRS:
        verdict = "too few pairs"
        flags.append(f"a verdict needs {LEAST_PAIRS} items or more, and there are {len(values)}")
    elif found.shown and found.difference is not None:
        better = found.difference < 0
        if any((candidate_one if better else base_one).failure for base_one, candidate_one in both):
            flags.append("an arm that fails where the other finishes is not called better, whatever it does elsewhere")
        else:
            verdict = "better" if better else "worse"
    if found.constant:
        flags.append("all differences are the same: there is no noise to hold them against")
    if changed and terms.keep != TEXT:
        flags.append(f"{changed:.1%} of the texts are not those of '{base}'")
    return Weighed(candidate, base, verdict, len(pairs), len(values), found, kept, changed, (*flags, *lost))


def _difference(base: float, candidate: float) -> float:
    return candidate - base


def _log_ratio(base: float, candidate: float) -> float:
    return math.log(candidate / base)


def _values(outcome: ArmOutcome, name: str) -> tuple[float, ...]:
    """A figure of each item, or of the whole as one."""
    return outcome.items[name] if outcome.items else (outcome.figures[name],)


def _by_item(pairs: Sequence[Pair], name: str, change: Callable[[float, float], float]) -> list[float]:
    """What is different, item by item: the mean over the seeds; seed by seed where the whole is one."""
    rows = [
        [change(base, own) for base, own in zip(_values(pair[0], name), _values(pair[1], name), strict=True)]
        for pair in pairs
    ]
    if pairs and pairs[0][0].items:
        return [fmean(column) for column in zip(*rows, strict=True)]
    return [row[0] for row in rows]


def _unequal(pairs: Sequence[Pair], terms: Terms) -> list[str]:
    """What is wrong where two of a pair spent different amounts of what is held."""
    found = []
    for unit in terms.hold:
        apart = []
        for base, candidate in pairs:
            spent, against = candidate.spent[unit], base.spent[unit]
            share = spent / against - 1 if against else (math.inf if spent else 0.0)
            if abs(share) > terms.tolerance:
                apart.append((share, base.seed))
        if apart:
            worst, seed = max(apart, key=lambda one: abs(one[0]))
            found.append(
                f"the arms did not spend the same: '{pairs[0][1].arm}' spent up to {abs(worst) * 100:.2f} % "
                f"{'more' if worst > 0 else 'less'} {unit} than '{pairs[0][0].arm}' (seed {seed})"
            )
    return found


def _other_items(pairs: Sequence[Pair]) -> list[str]:
    counts = {len(values) for pair in pairs for each in pair for values in each.items.values()}
    return ["the outcomes are of different numbers of items"] if len(counts) > 1 else []


def _changed(pairs: Sequence[Pair]) -> float | None:
    """The share of texts that differ; None where there are none."""
    differ = [a != b for base, candidate in pairs for a, b in zip(base.texts, candidate.texts, strict=False)]
    return fmean(differ) if differ else None


def _given_up(terms: Terms, kept: Paired | None, changed: float | None) -> list[str]:
    """What is wrong where what must be kept is not."""
    if terms.keep == TEXT and changed:
        return [f"{changed:.1%} of the texts are not the base's: keep a figure within a margin to compare such arms"]
    if kept is None or terms.margin is None or kept.difference is None:
        return []
    if kept.constant:
        return [] if kept.difference < terms.margin else [f"{terms.keep} is {kept.difference:.3g} worse"]
    if kept.interval is None or kept.interval[1] >= terms.margin:
        ends = "" if kept.interval is None else f" (interval {kept.interval[0]:+.3g} to {kept.interval[1]:+.3g})"
        return [f"{terms.keep} is not shown to be kept within {terms.margin:g}: it is {kept.difference:+.3g} off{ends}"]
    return []
