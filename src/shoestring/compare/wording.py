"""A comparison in words: a few sentences for people, on one line."""

import math
from collections.abc import Mapping

from shoestring.budget.units import show
from shoestring.compare.arms import ArmSummary
from shoestring.compare.comparison import Comparison
from shoestring.compare.design import Design
from shoestring.train.config import RunConfig

UNTUNED = (
    "Nothing was tuned: each arm ran at the learning rates of its recipe, or at defaults where the recipe gives none. "
    "Another rate may turn the verdict; --tune gives every arm the same trials."
)
"""What is said first of a comparison without tuning."""


def rates(arms: Mapping[str, RunConfig]) -> str:
    """The learning rate of each arm, and whether it is its optimiser's default: 'a 0.02 (the default of muon), b 0.01'."""
    found = []
    for name, config in arms.items():
        rate = config.optim.options.get("lr")
        own = config.optim.card.options().model_fields.get("lr")
        if rate is not None:
            default = f" (the default of {config.optim.name})" if own is not None and rate == own.default else ""
            found.append(f"{name} has optim.lr = {rate:g}{default}")
    return ", ".join(found)


def percentage(share: float) -> str:
    """'95 %', '99.23 %': a confidence, with digits enough not to read 100."""
    digits = 0 if share < 0.995 and math.isclose(share * 100, round(share * 100), abs_tol=1e-9) else 2
    return f"{share * 100:.{digits}f} %"


def headline(one: Comparison) -> str:
    """Names and verdict: 'muon is better than adamw'."""
    if one.verdict in ("better", "worse"):
        return f"{one.candidate} is {one.verdict} than {one.base}"
    if one.verdict == "too few pairs":
        return f"{one.candidate} against {one.base}: too few pairs for a verdict"
    return f"{one.candidate} against {one.base}: {one.verdict}"


def effect(one: Comparison) -> str:
    """The difference in nats with its interval, and on how many pairs it stands."""
    if one.difference is None:
        return "no pair of finished runs"
    pairs = f"{one.pairs} pair{'s' * (one.pairs != 1)}"
    side = "lower" if one.difference < 0 else "higher"
    words = f"ends {abs(one.difference):.4f} nats a token {side}" if one.difference else "ends equal"
    if one.interval is None:
        return f"{words} ({pairs}, no interval)"
    low, high = one.interval
    return f"{words} ({percentage(one.confidence)} interval {low:+.4f} to {high:+.4f}, {pairs})"


def against_margin(one: Comparison, design: Design) -> str:
    """Which differences that matter the interval leaves; '' where no margin was set, or there is no interval to trust: runs that
    do not compare, or a planned pair that is missing, which a failure could have bought."""
    if one.margin is None or design.margin is None or one.interval is None:
        return ""
    if one.verdict == "not comparable" or one.pairs < len(design.seeds):
        return ""
    low, high = one.interval
    margin = f"{design.margin * 100:g} % ({one.margin:.4f} nats)"
    if low > one.margin or high < -one.margin:
        return f"more than {margin} {'higher' if low > 0 else 'lower'}"
    if -one.margin < low and high < one.margin:
        return f"equal within {margin}"
    if high < one.margin:
        return f"no more than {margin} higher"
    if low > -one.margin:
        return f"no more than {margin} lower"
    return f"not shown to be within {margin}"


def detectable(one: Comparison) -> str:
    """What these pairs could have shown; '' where that is not known."""
    if one.minimum_detectable_effect is None:
        return ""
    words = f"These pairs would show a difference of {one.minimum_detectable_effect:.4f} nats in 4 of 5 cases"
    if one.pairs_needed is not None:
        words += f"; one of the size observed needs {one.pairs_needed} pairs"
    return words + "."


def speed(one: Comparison) -> str:
    """How much sooner or later, as far as it was reached; '' where no difference is called: that has no speed either."""
    found = one.speed_up
    if one.difference is None or one.verdict not in ("better", "worse"):
        return ""
    faster, slower = (one.candidate, one.base) if one.difference <= 0 else (one.base, one.candidate)
    if found.share is None or found.ratio is None:
        return f"{faster} does not reach {slower}'s final loss at most seeds."
    bound = "at least" if one.difference <= 0 else "at most"
    return (
        f"{faster} reaches {slower}'s final loss in {found.share * 100:.0f} % of the budget or less: {one.candidate} is {bound} "
        f"{found.ratio:.2f} times as fast."
    )


def cost(one: Comparison) -> str:
    """Extra memory and extra seconds a step; '' without a pair."""
    if one.extra_memory is None:
        return ""
    memory = "the same memory"
    if one.extra_memory:
        memory = f"{show('bytes', abs(one.extra_memory))} {'more' if one.extra_memory > 0 else 'less'} memory"
    if one.extra_step_seconds is None:
        return f"It takes {memory}."
    milliseconds = abs(one.extra_step_seconds) * 1000
    step = f"{milliseconds:.3g} ms {'more' if one.extra_step_seconds > 0 else 'less'} a step"
    return f"It takes {memory} and {step if milliseconds else 'the same time a step'}."


def tuning(one: Comparison, arms: Mapping[str, ArmSummary], design: Design) -> str:
    """What the choice of settings cost, and whether a better one may lie beyond those tried; '' where nothing was tuned."""
    charged, against = arms[one.candidate].tuning, arms[one.base].tuning
    if charged is None or against is None:
        return before(one, arms, design).strip()  # that nothing was tuned is said first
    spent, base_spent = (show(design.unit, getattr(each.spent, design.unit)) for each in (charged, against))
    words = f"Tuning: {len(charged.tried)} tries ({spent}) charged to {one.candidate}, "
    words += f"{len(against.tried)} ({base_spent}) to {one.base}."
    for name, arm in ((one.candidate, charged), (one.base, against)):
        if arm.chosen is not None and arm.edges:
            chosen = ", ".join(f"{key} = {arm.chosen[key]:g}" for key in arm.edges)
            words += f" The best of {name} is at the edge of what was tried ({chosen}): tune wider."
    return words + before(one, arms, design)


def before(one: Comparison, arms: Mapping[str, ArmSummary], design: Design) -> str:
    """What was spent before the comparison on what an arm is made from; '' where nothing was."""
    words = ""
    for name in (one.candidate, one.base):
        spent = getattr(arms[name].charged, design.unit)
        if spent:
            words += f" An earlier run ({show(design.unit, spent)}) that {name} is made from is charged to it too."
    return words


def sentence(one: Comparison, arms: Mapping[str, ArmSummary], design: Design) -> str:
    """One comparison whole: whether it was tuned, names, verdict, effect, speed, cost, what tuning cost."""
    opening = f"{headline(one)} at {show(design.unit, design.amount)} a run: it {effect(one)}."
    if one.difference is None:
        opening = f"{headline(one)} at {show(design.unit, design.amount)} a run: {effect(one)}."
    if not design.tuned:
        opening = f"Untuned: {opening}"
    near = against_margin(one, design)
    near = f"By its interval it is {near}." if near else ""
    unsure = detectable(one) if one.verdict == "no difference shown" else ""
    return " ".join(part for part in (opening, near, unsure, speed(one), cost(one), tuning(one, arms, design)) if part)


def statement(comparisons: tuple[Comparison, ...], design: Design) -> str:
    """The verdict of all comparisons, in one line; first, where it is so, that nothing was tuned."""
    each = "; ".join(
        ", ".join(part for part in (f"{headline(one)}: {effect(one)}", against_margin(one, design)) if part)
        for one in comparisons
    )
    line = f"At {show(design.unit, design.amount)} a run: {each}."
    if not design.tuned:
        line = f"{UNTUNED} {line}"
    if len(comparisons) > 1:
        false = 1 - design.confidence
        line += (
            f" Each of the {len(comparisons)} comparisons is drawn on its own: between equal arms {percentage(false)} of "
            "them call a difference."
        )
    return line
