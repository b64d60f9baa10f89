"""How a candidate stands against the base: which runs may be compared, what they show, whether more could change it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shoestring.compare.arms import judged, trials_of
from shoestring.compare.design import Design
from shoestring.compare.record import RunRecord
from shoestring.compare.sequential import levels
from shoestring.compare.speed import Pair
from shoestring.compare.statistics import LEAST_PAIRS, Paired, paired

Judgement = Literal["better", "worse", "no difference shown", "too few pairs", "not comparable"]

TOKENIZER_TOLERANCE = 0.01
"""Share by which held-out bytes a token may differ between arms: one tokenizer, up to where windows of text are cut."""


@dataclass(frozen=True)
class Standing:
    """pairs: those counted. found: what they show. flags: what a reader must know, one line each. settled: no added seed
    could change the verdict, or none that did would be believed."""

    verdict: Judgement
    pairs: tuple[Pair, ...]
    found: Paired
    flags: tuple[str, ...]
    settled: bool


def differences(pairs: Sequence[Pair]) -> list[float]:
    """Candidate - base, nats a token."""
    return [(candidate.loss or 0.0) - (base.loss or 0.0) for base, candidate in pairs]


def _test(pairs: Sequence[Pair], confidence: float) -> Paired:
    return paired(
        differences(pairs), confidence, max((abs(run.loss or 0.0) for pair in pairs for run in pair), default=0)
    )


def _look(prefixes: Sequence[Sequence[Pair]], design: Design) -> tuple[Sequence[Pair], Paired]:
    """(pairs counted, what they show) at the first look that decides, else at the last. prefixes: pairs at each look."""
    confidence = design.confidence
    by_size = {
        len(pairs): pairs for pairs in reversed(prefixes) if len(pairs) >= LEAST_PAIRS
    }  # a lost pair adds no look
    looks = [by_size[size] for size in sorted(by_size)]
    if not (design.sequential and looks):
        pairs = prefixes[-1]
        return pairs, _test(pairs, confidence)
    level = levels(len(looks[0]), design.cap, 1 - confidence)
    for pairs in looks:
        found = _test(pairs, 1 - level[len(pairs)])
        if found.shown:
            break
    return pairs, found


def _failures(base: Mapping[int, RunRecord], candidate: Mapping[int, RunRecord], seeds: Sequence[int]) -> list[str]:
    flags = []
    for runs in (candidate, base):
        failed = [runs[seed] for seed in seeds if seed in runs and not runs[seed].complete]
        if failed:
            at = ", ".join(str(run.seed) for run in failed)
            flags.append(
                f"'{failed[0].arm}' failed at seed{'s' * (len(failed) > 1)} {at} ({failed[0].failure}): not among the pairs"
            )
    return flags


def _unequal(pairs: Sequence[Pair], design: Design) -> str:
    """What is wrong where two runs of a pair spent different amounts; '' where nothing is."""
    apart = []
    for base, candidate in pairs:
        spent, against = getattr(candidate, design.unit), getattr(base, design.unit)
        share = spent / against - 1 if against else (math.inf if spent else 0.0)
        if abs(share) > design.tolerance:
            apart.append((share, base.seed))
    if not apart:
        return ""
    worst, seed = max(apart, key=lambda one: abs(one[0]))
    more = "more" if worst > 0 else "less"
    return (
        f"the arms did not spend the same: '{pairs[0][1].arm}' spent up to {abs(worst) * 100:.2f} % {more} {design.unit} than "
        f"'{pairs[0][0].arm}' (seed {seed}; {len(apart)} of {len(pairs)} pairs differ by more than {design.tolerance * 100:g} %)"
    )


def _unlike_machines(pairs: Sequence[Pair], design: Design) -> str:
    """What is wrong where equal seconds are of machines that are not alike; '' where nothing is."""
    if design.unit != "seconds":
        return ""
    kinds = {run.made_on.get("fingerprint", "") for pair in pairs for run in pair}
    if len(kinds) < 2:
        return ""
    hosts = sorted({run.made_on.get("host", "the machine of environment.json") for pair in pairs for run in pair})
    return (
        f"equal seconds on {len(kinds)} kinds of machines ({', '.join(hosts)}): a second does not buy the same on each"
    )


def _other_tokenizer(pairs: Sequence[Pair]) -> str:
    """What is wrong where nats a token mean different things in the two arms; '' where nothing is."""
    for base, candidate in pairs:
        if base.bits_per_byte and candidate.bits_per_byte and base.loss and candidate.loss:
            ratio = (candidate.loss / candidate.bits_per_byte) / (base.loss / base.bits_per_byte)
            if abs(ratio - 1) > TOKENIZER_TOLERANCE:
                return (
                    f"the arms cut the held-out text into tokens differently ('{candidate.arm}' has {ratio:.3g} times the "
                    f"bytes a token of '{base.arm}'): nats a token do not compare"
                )
    return ""


def _all_trials_failed(records: Sequence[RunRecord], design: Design, arm: str) -> bool:
    trials = trials_of(records, design, arm)
    return bool(trials) and len(trials) == len(design.trials(arm)) and not any(trial.complete for trial in trials)


def _constant(found: Paired) -> str:
    if not found.difference:
        return f"all {found.pairs} pairs are identical: the candidate changes nothing that is measured"
    return (
        f"all {found.pairs} pairs differ by the same {found.difference:.3g} nats: the seed changes nothing that is measured, "
        "so they are one measurement and leave no noise to hold it against"
    )


def standing(records: Sequence[RunRecord], design: Design, candidate: str) -> Standing:
    """Judge one candidate against the base. records: all of the comparison, or any part of it.

    No verdict is drawn before every planned seed has run, none from fewer than `LEAST_PAIRS` pairs, and none that a failure
    could have bought: an arm that fails where the other finishes is not called the better one.
    """
    bases, others = judged(records, design.base), judged(records, candidate)
    ran = [seed for seed in design.all_seeds if seed in bases and seed in others]
    missing = [seed for seed in design.seeds if seed not in ran]
    prefixes = _prefixes([(bases[seed], others[seed]) for seed in ran], len(design.seeds) - len(missing))
    every = prefixes[-1]
    pairs, found = _look(prefixes, design)
    flags = _failures(bases, others, ran)
    untuned = [arm for arm in (design.base, candidate) if _all_trials_failed(records, design, arm)]
    flags += [f"every trial of '{arm}' failed: it was not judged" for arm in untuned]
    unequal = [flag for flag in (_unequal(every, design), _other_tokenizer(every)) if flag]
    unlike = _unlike_machines(every, design)
    if unlike and not design.unlike_machines:
        unequal.append(unlike)
    flags += unequal
    if unlike and design.unlike_machines:
        flags.append(f"{unlike}; they count all the same, as was asked for")
    failed = [seed for seed in ran if bases[seed].complete and not others[seed].complete]
    base_failed = [seed for seed in ran if others[seed].complete and not bases[seed].complete]
    shown = found.shown and found.pairs >= LEAST_PAIRS
    verdict: Judgement = "no difference shown"
    if untuned or unequal or (ran and not every):
        verdict = "not comparable"
    elif missing:
        flags.append(f"{len(missing)} of {len(design.seeds)} planned seeds have not run: no verdict before they have")
    elif shown and found.difference is not None:
        better = found.difference < 0
        if failed if better else base_failed:
            flags.append(
                "an arm that fails where the other finishes is not called better, whatever its other runs show"
            )
        else:
            verdict = "better" if better else "worse"
    if len(pairs) < len(every):
        flags.append(f"decided after {len(pairs)} pairs: {len(every) - len(pairs)} later not counted")
    if 0 < found.pairs < LEAST_PAIRS:
        flags.append(few_pairs(found.pairs))
        verdict = "too few pairs" if verdict == "no difference shown" else verdict
    if found.constant:
        flags.append(_constant(found))
    decided = shown or verdict == "not comparable" or bool(failed) or found.constant
    return Standing(verdict, tuple(pairs), found, tuple(flags), bool(untuned) or (not missing and decided))


def few_pairs(pairs: int) -> str:
    """Why so few pairs have no verdict, and what to do."""
    why = (
        "one pair does not show its noise"
        if pairs == 1
        else "two pairs show their noise by one number, the gap between them"
    )
    return f"{why}: a verdict needs {LEAST_PAIRS} pairs or more, so give more with --seeds"


def _prefixes(ran: Sequence[Pair], planned: int) -> list[list[Pair]]:
    """The complete pairs after the planned seeds, and after each that was added. ran: in the order of the seeds."""
    return [
        [(base, candidate) for base, candidate in ran[:end] if base.complete and candidate.complete]
        for end in range(planned, len(ran) + 1)
    ]
