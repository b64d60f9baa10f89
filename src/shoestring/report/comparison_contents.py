"""What the page of a comparison shows, section by section, as its template takes it."""

import shlex
from dataclasses import dataclass

from shoestring.report import quantities
from shoestring.report.comparison_files import Compared
from shoestring.report.comparison_tuning import settings
from shoestring.report.differences import differing, flat, written
from shoestring.report.verdict_records import Arm, ComparisonRecord, SpendingRecord, VerdictRecord
from shoestring.report.verdict_words import LOOKS, Look, confidence, interval, look, signed

_UNTUNED = "Nothing was tuned"
OPEN = 4
"""Up to this many candidates have what is said of each unfolded."""

_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Line:
    """A row of a table. look: of its verdict; None for the base."""

    name: str
    look: Look | None
    cells: list[str]


def title(verdict: VerdictRecord) -> str:
    """'soap against adamw', '12 candidates against adamw'."""
    count = len(verdict.comparisons)
    return f"{verdict.comparisons[0].candidate if count == 1 else f'{count} candidates'} against {verdict.base}"


def terms(verdict: VerdictRecord) -> str:
    """What every run had, how many there were, and how they were judged."""
    seeds = f"{len(verdict.seeds)} seed{'s' * (len(verdict.seeds) != 1)} ({', '.join(map(str, verdict.seeds))})"
    ends = "seeds were added until it was decided, and each interval is wide enough to pay for every look"
    chance = confidence(1 - verdict.confidence)
    alone = f"each comparison is drawn on its own: between equal arms {chance} of them call a difference"
    parts = [
        f"{quantities.amount(verdict.unit, verdict.amount)} for every run",
        f"{seeds}, paired",
        f"{confidence(verdict.confidence)} confidence",
        *([ends] if verdict.sequential else []),
        *([alone] if len(verdict.comparisons) > 1 else []),
    ]
    return " · ".join(parts)


def untuned(verdict: VerdictRecord) -> str:
    """What comes first where nothing was tuned; '' where something was, or the statement below already begins so."""
    said = verdict.statement.startswith(_UNTUNED) and not tally(verdict)
    if said or any(arm.tuning for arm in verdict.arms.values()):
        return ""
    return f"{_UNTUNED}: each arm ran at the learning rates of its recipe, or at defaults where the recipe gives none."


def tally(verdict: VerdictRecord) -> list[tuple[Look, str]]:
    """(verdict, the candidates it was given to in order of effect), where there are too many for one statement."""
    names: dict[Look, list[str]] = {shown: [] for shown in LOOKS.values()}
    for one in verdict.ranked:
        names[look(one)].append(one.candidate)
    few = len(verdict.comparisons) <= OPEN
    return [] if few else [(shown, ", ".join(found)) for shown, found in names.items() if found]


def duration(seconds: float | None) -> str:
    """A short time with its sign: '+1.25 ms', '−12 ms', '+1.5 s'."""
    if seconds is None:
        return quantities.NONE
    sign = "−" if seconds < 0 else "+" * (seconds > 0)
    size = abs(seconds)
    return sign + (f"{1000 * size:.3g}{_SPACE}ms" if size < 1 else quantities.time(size))


def _more(value: float | None) -> str:
    sign = "+" if value is not None and value > 0 else ""
    return sign + quantities.scaled(value, "B")


def _spread(arm: Arm) -> str:
    sd = arm.loss.sd
    return quantities.plain(arm.loss.mean) + ("" if sd is None else f" ± {quantities.plain(sd)}")


def _interval(one: ComparisonRecord, named: bool) -> str:
    share = f" ({confidence(one.confidence)})" if named and one.confidence is not None and one.ends else ""
    return interval(one) + share


def _speed_up(one: ComparisonRecord) -> str:
    found = one.speed_up
    if found is None or found.ratio is None:
        return quantities.NONE
    share = "" if found.share is None else f" ({quantities.percent(found.share, 0)})"
    bound = "≥" if found.ratio >= 1 else "≤"
    return f"{bound}{_SPACE}{quantities.plain(found.ratio, 2)}×{share}"


def _resource(unit: str, spent: SpendingRecord | None) -> str:
    value = spent.of(unit) if spent else None
    if unit == "seconds":
        return quantities.time(value)
    return quantities.power(value) if unit == "flops" else quantities.scaled(value)


def _tuned(arm: Arm, unit: str) -> str:
    if arm.tuning is None:
        return "none"
    return f"{_resource(unit, arm.tuning.spent)}, {len(arm.tuning.tried)}×"


def verdict_table(verdict: VerdictRecord) -> tuple[list[str], list[Line]]:
    """(columns, rows): the base first, then the candidates in order of effect."""
    # where seeds were added, each interval has a confidence of its own
    own = {one.confidence for one in verdict.comparisons if one.ends} - {verdict.confidence, None}
    column = "Interval" if own else f"{confidence(verdict.confidence)} interval"
    columns = ["Held-out loss", "Effect", column, "Speed-up (share)",
               "Extra memory", "Extra time a step", "Spent on tuning"]  # fmt: skip
    base = verdict.arms[verdict.base]
    none = quantities.NONE
    lines = [Line(verdict.base, None, [_spread(base), none, none, none, none, none, _tuned(base, verdict.unit)])]
    for one in verdict.ranked:
        arm = verdict.arms[one.candidate]
        cells = [_spread(arm), signed(one.difference), _interval(one, bool(own)), _speed_up(one), _more(one.extra_memory),
                 duration(one.extra_step_seconds), _tuned(arm, verdict.unit)]  # fmt: skip
        lines.append(Line(one.candidate, look(one), cells))
    return columns, lines


def _chance(value: float | None) -> str:
    return "< 0.0001" if value is not None and value < 1e-4 else quantities.plain(value, 4)


def certainty_table(verdict: VerdictRecord) -> tuple[list[str], list[Line]]:
    """How sure each verdict is, and all that was spent on it."""
    columns = ["Finished", "Failed", "Pairs", "SD of a pair", "Least effect detectable", "Pairs needed", "p-value",
               "Bits per byte", "Parameters", "Time a step", f"{verdict.unit.capitalize()} a run", "Spent in all"]  # fmt: skip
    found: dict[str, ComparisonRecord] = {one.candidate: one for one in verdict.comparisons}
    lines = []
    for name in [verdict.base, *(one.candidate for one in verdict.ranked)]:
        arm, one = verdict.arms[name], found.get(name)
        odds = [
            str(one.pairs), quantities.plain(one.standard_deviation, 4), quantities.plain(one.minimum_detectable_effect, 4),
            quantities.scaled(one.pairs_needed), _chance(one.p_value),
        ] if one else [quantities.NONE] * 5  # fmt: skip
        cells = [
            str(arm.runs), str(arm.failed), *odds, quantities.plain(arm.bits_per_byte), quantities.scaled(arm.parameters),
            duration(arm.step_seconds).removeprefix("+"), _resource(verdict.unit, arm.spent),
            _resource(verdict.unit, arm.total_spent),
        ]  # fmt: skip
        lines.append(Line(name, look(one) if one else None, cells))
    return columns, lines


def sentences(verdict: VerdictRecord) -> list[tuple[Look, str]]:
    """Each verdict in a sentence; nothing where the statement at the top already is that sentence."""
    found = [(look(one), one.sentence) for one in verdict.ranked if one.sentence]
    return [] if len(found) == 1 and found[0][1] in verdict.statement else found


def troubles(verdict: VerdictRecord) -> list[tuple[str, str]]:
    """(arm, what was unequal, failed or cut short): what a reader has to know before believing the figures."""
    flagged: dict[str, list[str]] = {}
    for one in verdict.ranked:
        for flag in dict.fromkeys(one.flags):
            flagged.setdefault(flag, []).append(one.candidate)
    everywhere = len(verdict.comparisons) if len(verdict.comparisons) > 1 else 0
    rows = [("all" if len(names) == everywhere else ", ".join(names), flag) for flag, names in flagged.items()]

    def said(name: str, word: str) -> bool:
        return any(f"'{name}'" in flag and word in flag for flag in flagged)

    for name, arm in verdict.arms.items():
        if arm.failed and not said(name, "failed"):
            rows.append((name, f"{arm.failed} run{'s' * (arm.failed > 1)} failed ({'; '.join(arm.reasons)})"))
        if arm.tuning and arm.tuning.edge and not said(name, "edge"):
            rows.append((name, f"tuning chose the edge of what was tried: {settings(arm.tuning.chosen)}"))
        tried = arm.tuning.tried if arm.tuning else []
        failed = sum(one.loss is None for one in tried)
        if failed:
            rows.append((name, f"{failed} of {len(tried)} tuning runs failed ({'; '.join(arm.reasons)})"))
    return sorted(rows, key=lambda row: row[0] != "all")


def apart(compared: Compared) -> list[tuple[str, str, list[tuple[str, str | None, str | None]]]]:
    """(candidate, a summary, (key, the base's value, its own) for the keys that differ), None where a key is absent."""
    verdict = compared.verdict
    base = compared.configs[verdict.base]
    found = []
    for one in verdict.ranked:
        rows = [(key, mine, own) for key, (mine, own) in differing([base, compared.configs[one.candidate]])]
        names = [f"{key.removesuffix('.name')}: {own}" for key, _, own in rows if key.endswith(".name") and own]
        summary = f"{len(rows)} key{'s' * (len(rows) != 1)}" + (f" ({', '.join(names)})" if names else "")
        found.append((one.candidate, summary, rows))
    return found


def commands(compared: Compared) -> list[tuple[str, str]]:
    """(what for, the command line): to work the verdict out again, and to make the runs again."""
    fresh = shlex.quote(f"../{compared.name}-again")
    return [
        ("The verdict and this page again, from the recorded runs:", "shoestring compare --from ."),
        ("All runs anew, in another folder:", f"shoestring compare --again . --out {fresh}"),
    ]


def environment(compared: Compared) -> list[tuple[str, str]]:
    return [(key, written(value)) for key, value in flat(compared.environment).items()]
