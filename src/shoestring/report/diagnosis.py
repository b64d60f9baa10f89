"""What a report says of the processes of a run: who held the others up, who was lost, and what became of the seconds."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from shoestring.budget.goodput import Goodput, goodput
from shoestring.budget.ledger import RESTART, SYNC_EXPOSED
from shoestring.report.drawing import to_svg
from shoestring.report.processes import Process, heat_table
from shoestring.report.quantities import percent, time
from shoestring.report.run_files import Run
from shoestring.report.timeline_figure import drawn, span, timeline_figure

ENOUGH = 32
"""Steps after which a process that holds the others up has been named."""


@dataclass(frozen=True)
class TimelineDrawing:
    """The timeline on the page; narrow: for a phone."""

    title: str
    svg: Markup
    narrow: Markup
    caption: str


def goodput_of(run: Run) -> Goodput | None:
    """What became of the run's seconds; None of a process that never waited for another one and lost nothing."""
    seconds = run.totals.seconds
    if not (run.lost or seconds.get(RESTART) or seconds.get(SYNC_EXPOSED)):
        return None
    return goodput(run.totals, run.lost)


def goodput_line(found: Goodput) -> str:
    parts = [f"{percent(found.share(found.useful))} of {time(found.total)} in steps that it kept"]
    for seconds, words in (
        (found.waiting, "waiting for other processes"),
        (found.lost, "in steps that were lost"),
        (found.restarting, "in restarts"),
    ):
        if seconds:
            parts.append(f"{percent(found.share(seconds))} {words}")
    return ", ".join(parts)


def _named(run: Run) -> list[str]:
    """Who was noticed, in words: while the run went on, and over its last steps."""
    lines = []
    for event in run.processes.stragglers:
        share = event.get("share")
        more = f", {percent(share, 0)} above the others" if isinstance(share, int | float) else ""
        host = f" ({event['host']})" if event.get("host") else ""
        lines.append(
            f"rank {event.get('rank')}{host} held the others up in '{event.get('phase')}'{more}, by step {event.get('step')}"
        )
    for event in run.processes.restarts:
        how = "was frozen" if event.get("frozen") else "was lost"
        seen = f" in '{event['phase']}' of step {event.get('step')}" if event.get("phase") else ""
        host = f" ({event['host']})" if event.get("host") else ""
        lines.append(f"rank {event.get('rank')}{host} {how}{seen}: the run went on from step {event.get('goes_on')}")
    return lines


def one_line(run: Run) -> str:
    """For a terminal: '' of a run with nothing to tell."""
    parts = []
    found = goodput_of(run)
    if found is not None:
        parts.append(f"goodput: {goodput_line(found)}")
    parts += _named(run)
    each = run.processes.each
    if len(each) > 1 and not run.processes.stragglers and all(len(process.steps) >= ENOUGH for process in each):
        parts.append("no process held the others up")
    return "; ".join(parts).replace("\N{NO-BREAK SPACE}", " ")


def shown(run: Run) -> dict[str, Any] | None:
    """What the page shows; None of a run with nothing to tell."""
    found = goodput_of(run)
    lines = [f"Goodput: {goodput_line(found)}."] if found is not None else []
    lines += [f"{line[0].upper()}{line[1:]}." for line in _named(run)]
    columns, rows = heat_table(run.processes.each)
    timeline = _timeline(run.processes.each)
    if not (lines or rows or timeline):
        return None
    note = (
        "Own work: phases in which a process works by itself. A red cell is above the median of the other processes, and says by "
        "how much of their own work where that is a quarter or more. Waiting has no colour: the slowest process waits least."
    )
    return {"lines": lines, "timeline": timeline, "columns": columns, "rows": rows, "note": note}


def _timeline(processes: list[Process]) -> TimelineDrawing | None:
    some = drawn(processes)
    if span(some) is None:
        return None
    caption = "Full height: a process works by itself. A thin line: it waits for the others, and sends."
    if len(some) < len(processes):
        caption += f" {len(some)} of {len(processes)} processes: those with the least and the most work of their own."
    off = max(process.offset_error for process in some)
    caption += f" Clocks agree to {1000 * off:.2g} ms." if off else ""
    words = "; ".join(
        f"rank {process.rank}: "
        + ", ".join(f"{phase} {1000 * each:.1f} ms" for phase, each in process.medians.items() if each)
        for process in some
    )
    title = "The last steps, process by process"
    label = f"{title}. Median of a step: {words}"
    wide, narrow = timeline_figure(some), timeline_figure(some, width=380)
    pictures = [Markup(to_svg(each, name, label)) for each, name in ((wide, "timeline"), (narrow, "timeline-narrow"))]
    return TimelineDrawing(title, pictures[0], pictures[1], caption)
