"""The page of a comparison: the statement, the intervals, the curves behind them, and how to do it again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shoestring.report import comparison_contents as contents
from shoestring.report.comparison_curves import (
    Lines,
    against_base_figure,
    arm_lines,
    height,
    outlying,
    reach,
    together_figure,
)
from shoestring.report.comparison_files import Compared, read_comparison
from shoestring.report.comparison_intervals import interval_figure, limits, margin
from shoestring.report.comparison_tuning import settings, tuning_figure
from shoestring.report.contents import Drawing
from shoestring.report.drawing import SERIES, to_svg
from shoestring.report.page import document, write_page
from shoestring.report.verdict_words import look, signed

TOGETHER = 4
"""Up to this many arms share one frame of curves; of more, each candidate has its own, over the base."""


def _svg(figure: Any, name: str, label: str) -> Markup:
    return Markup(to_svg(figure, name, label))


def _intervals(compared: Compared) -> Drawing:
    rows = compared.verdict.ranked
    low, high = limits(rows)
    caption = "Large mark: the mean difference. Bar: its interval. Small points: the pairs, one a seed."
    near = margin(rows)
    if near is not None:
        caption += f" Shaded: differences of at most {near:.4f} nats, the margin that was set."
    beyond = [one.candidate for one in rows if one.difference is not None and not low <= one.difference <= high]
    if beyond:
        caption += f" Past the edge: {', '.join(beyond)}."
    label = "Differences to the base: " + "; ".join(
        f"{one.candidate} {signed(one.difference)}, {one.verdict}" for one in rows
    )
    wide, narrow = interval_figure(rows), interval_figure(rows, width=400)
    return Drawing("The effect", _svg(wide, "effect", label), caption, _svg(narrow, "effect-narrow", label))


def _caption(drawn: Sequence[Lines]) -> str:
    """What the lines are, as far as they are there."""
    seeds = max((len(one.seeds) for one in drawn), default=0)
    words = "Thin: each seed. Bold: their mean." if seeds > 1 else "One seed."
    if any(one.failed for one in drawn):
        words += " Dashed, ending in a cross: a run that failed."
    return f"{words} The frame fits how the runs end; an arrow says how far a curve goes beyond it."


def _curves(compared: Compared) -> dict[str, Any]:
    """Either one drawing of all arms with its key, or a panel for each candidate."""
    verdict = compared.verdict
    lines = {name: arm_lines(compared, name) for name in compared.configs}
    drawn = {name: one for name, one in lines.items() if one.seeds or one.failed}
    caption = _caption(list(drawn.values()))
    if not drawn:
        return {"together": None, "panels": [], "key": [], "caption": caption}
    if len(lines) <= TOGETHER:
        # the first two of the series stand for verdicts elsewhere on the page
        colours = {name: "ink" if name == verdict.base else SERIES[place + 1] for place, name in enumerate(lines)}
        label = f"Held-out loss of {', '.join(drawn)}"
        wide = together_figure(drawn, colours, verdict.unit)
        narrow = together_figure(drawn, colours, verdict.unit, width=400, height_of=320)
        one = Drawing("", _svg(wide, "curves", label), "", _svg(narrow, "curves-narrow", label))
        key = [(colours[name], name) for name in drawn]
        return {"together": one, "panels": [], "key": key, "caption": caption}
    most, aside, base = reach(list(lines.values())), outlying(lines, verdict.base), lines[verdict.base]
    shared = height([one for name, one in lines.items() if name not in aside], most)
    panels = []
    for place, candidate in enumerate(verdict.ranked):
        mine = lines[candidate.candidate]
        if not (mine.seeds or mine.failed):
            continue
        frame = height([mine, base], most) if candidate.candidate in aside else shared
        shown = look(candidate)
        figure = against_base_figure(base, mine, "ink" if shown.hollow else shown.colour, verdict.unit, most, frame)
        caption = Markup('<b style="color: var(--{})">{} {}</b> {}').format(
            shown.colour, shown.glyph, shown.word, "" if candidate.difference is None else signed(candidate.difference)
        )
        caption += ", on a scale of its own" if candidate.candidate in aside else ""
        label = f"Held-out loss of {candidate.candidate} over that of {verdict.base}"
        panels.append(Drawing(candidate.candidate, _svg(figure, f"curve{place}", label), caption))
    return {"together": None, "panels": panels, "key": [], "caption": caption}


def _tuning(compared: Compared) -> list[Drawing]:
    drawings = []
    for place, name in enumerate(compared.configs):
        tuning = compared.verdict.arms[name].tuning
        if tuning is None or not tuning.tried:
            continue
        caption = f"Chosen: {settings(tuning.chosen)}" if tuning.chosen else "None was chosen"
        caption += ", at the edge of what was tried." if tuning.edge else "."
        label = f"Tuning of {name}. {caption}"
        drawings.append(Drawing(name, _svg(tuning_figure(tuning), f"tuning{place}", label), caption))
    return drawings


def render_comparison(compared: Compared) -> str:
    """The HTML of the page of a comparison."""
    verdict = compared.verdict
    content = {
        "verdict": verdict,
        "title": contents.title(verdict),
        "terms": contents.terms(verdict),
        "tally": contents.tally(verdict),
        "untuned": contents.untuned(verdict),
        "intervals": _intervals(compared) if verdict.comparisons else None,
        "verdicts": contents.verdict_table(verdict),
        "certainty": contents.certainty_table(verdict),
        "sentences": contents.sentences(verdict),
        "curves": _curves(compared),
        "tuning": _tuning(compared),
        "troubles": contents.troubles(verdict),
        "apart": contents.apart(compared),
        "unfolded": len(verdict.comparisons) <= contents.OPEN,
        "environment": contents.environment(compared),
        "commands": contents.commands(compared),
    }
    name = content.pop("title")
    return document("comparison.html", str(name), "comparison folder", content)


def write_comparison(folder: Path) -> Path:
    """Write report.html into a comparison folder from its files alone; returns its path.

    The page is self-contained, and the same files always give the same bytes.
    Raises: UsageError when `folder` is no comparison; ShoestringError when a file is missing or damaged, or the page
    cannot be written.
    """
    return write_page(folder / "report.html", render_comparison(read_comparison(folder)))
