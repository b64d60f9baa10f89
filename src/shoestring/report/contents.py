"""What the pages show: a run on its own, or several laid side by side, as the templates take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from shoestring.report import diagnosis, facts
from shoestring.report.curves import broken, finite, window
from shoestring.report.differences import differing, flat, marked, written
from shoestring.report.drawing import DASHES, SERIES, to_svg
from shoestring.report.figures import (
    CAUSES,
    OVERLAID,
    loss_figure,
    overlay_figure,
    progress_figure,
    shares,
    time_figure,
)
from shoestring.report.forgetting_figure import forgetting_figure, has_old_text
from shoestring.report.quantities import percent, time
from shoestring.report.run_files import Run

# control characters a model may emit are shown as their pictures: a page may hold no others than these two
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PROGRESS = (
    ("learning_rate_factor", "Learning rate", "share of its peak", False),
    ("gradient_norm", "Gradient norm", "2-norm over all parameters", True),
    ("tokens_per_second", "Speed", "tokens per second", True),
)
_RESOURCES = (("seconds", "time"), ("flops", "computation"), ("tokens", "tokens"))


@dataclass(frozen=True)
class Drawing:
    """A figure on the page. narrow: the same drawn for a phone, where it is not legible scaled down."""

    title: str
    svg: Markup
    caption: str = ""
    narrow: Markup | None = None


def _svg(figure: Any, name: str, label: str) -> Markup:
    return Markup(to_svg(figure, name, label))


def _loss(run: Run) -> Drawing | None:
    if not (run.train or run.heldout):
        return None
    lines = window(len(finite(run.train, "seconds", "loss")[1]))
    caption = "Line: training loss as recorded."
    if lines > 1:
        caption = f"Faint: training loss as recorded. Bold: its mean over {lines} records."
    if run.heldout:
        caption += " Points: loss on held-out text, which the model never trains on."
    lost = len(broken(run.train, "seconds", "loss"))
    if lost:
        caption += f" {lost} of {len(run.train)} recorded losses are not finite: crosses on the upper edge show where."
    wide, narrow = loss_figure(run), loss_figure(run, width=380, height=300)
    label = f"Loss over time. {caption}"
    return Drawing("Loss through the run", _svg(wide, "loss", label), caption, _svg(narrow, "loss-narrow", label))


def _progress(run: Run) -> list[Drawing]:
    drawings = []
    if has_old_text(run):
        caption = "Held-out losses less what they were before the first step: down is gained, up is forgotten."
        svg = _svg(forgetting_figure(run), "forgetting", f"Gain and forgetting. {caption}")
        drawings.append(Drawing("Gain and forgetting", svg, caption))
    for place, (key, title, unit, smoothed) in enumerate(_PROGRESS):
        records = len(finite(run.train, "progress", key)[0])
        if not records:
            continue
        figure = progress_figure(run.train, key, unit, smoothed=smoothed)
        mean = window(records)
        caption = "What the schedule multiplied it by."
        if smoothed:
            caption = f"Faint: as recorded. Bold: the mean over {mean} records." if mean > 1 else "As recorded."
        drawings.append(Drawing(title, _svg(figure, f"progress{place}", f"{title}: {unit}"), caption))
    return drawings


def _time(run: Run) -> Drawing | None:
    if not run.totals.seconds:
        return None
    words = ", ".join(
        f"{CAUSES.get(cause, cause)} {time(seconds)}" + ("" if share is None else f" ({percent(share)})")
        for cause, seconds, share in shares(run.totals)
    )
    caption = f"The causes add up to {time(run.totals.wall_clock)} of wall clock. Idle: time under no other cause."
    if run.totals.seconds.get("sync_hidden"):
        caption += " Hidden exchange went on while the model computed, and is no part of the sum."
    title = "Where the time went"
    wide, narrow = time_figure(run.totals), time_figure(run.totals, width=380)
    label = f"{title}: {words}"
    return Drawing(title, _svg(wide, "time", label), caption, _svg(narrow, "time-narrow", label))


def _samples(run: Run) -> list[tuple[int | None, list[tuple[str, str]]]]:
    """(step, its (prompt, continuation)s), the latest step first."""
    steps: dict[int | None, list[tuple[str, str]]] = {}
    for sample in run.samples:
        prompt, text = (str(sample.get(key) or "").translate(_VISIBLE) for key in ("prompt", "text"))
        steps.setdefault(sample.get("step"), []).append((prompt, text.removeprefix(prompt)))
    return list(steps.items())[::-1]


def single(run: Run) -> dict[str, Any]:
    """What the page of one run shows."""
    return {
        "run": run,
        "state": facts.state(run),
        "headline": facts.headline(run),
        "loss": _loss(run),
        "progress": _progress(run),
        "time": _time(run),
        "traffic": facts.traffic(run) if run.totals.seconds else [],
        "diagnosis": diagnosis.shown(run),
        "data": facts.data(run),
        "samples": _samples(run),
        "decisions": [[written(item.get(key, "")) for key in ("key", "value", "reason")] for item in run.decisions],
        "config": marked(run.config),
        "environment": [(key, written(value)) for key, value in flat(run.environment).items()],
    }


def letter(index: int) -> str:
    """A, B ... Z, AA, AB ...: what a run is called inside the figures."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def _panels(runs: Sequence[Run], letters: Sequence[str], kind: str, title: str) -> tuple[str, list[Drawing], str]:
    """(title, a drawing for each resource, what is not drawn) of one kind of loss."""
    drawings = []
    for against, word in _RESOURCES:
        if any(len(finite(getattr(run, kind), against, "loss")[0]) for run in runs):
            figure = overlay_figure(runs, letters, kind, against)
            label = f"{title} of {len(runs)} runs against {word}"
            drawings.append(Drawing(f"against {word}", _svg(figure, f"{kind}-{against}", label)))
    lost = [len(broken(getattr(run, kind), "seconds", "loss")) for run in runs]
    gone = ", ".join(f"{count} of run {name}" for name, count in zip(letters, lost, strict=True) if count)
    note = "The frame fits the second half of the runs; an arrow says how far a curve goes beyond it."
    if kind == "train":
        means = [window(len(finite(run.train, "seconds", "loss")[1]), OVERLAID) for run in runs]
        if max(means) > 1:
            note += f" Each line is the mean over {_range(means)} records."
    if gone:
        note += f" Losses that are not finite, and not drawn: {gone}."
    return title, drawings, note


def _range(counts: Sequence[int]) -> str:
    """'8', '3 to 8'."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def several(runs: Sequence[Run]) -> dict[str, Any]:
    """What the page of several runs shows."""
    letters = [letter(index) for index in range(len(runs))]
    losses = [facts.heldout(run)[0] if run.summary is not None else None for run in runs]
    lowest = min((loss for loss in losses if loss is not None and loss == loss), default=None)
    changed = differing([run.config for run in runs])
    keys = frozenset(key for key, _ in changed)
    described = [
        {
            "letter": letters[index],
            "name": run.name,
            "colour": SERIES[index % len(SERIES)],
            "dashed": index // len(SERIES) % len(DASHES) > 0,
            "state": facts.state(run)[0],
            "config": marked(run.config, keys),
            "figures": facts.row(run),
            "lowest": losses[index] is not None and losses[index] == lowest,
        }
        for index, run in enumerate(runs)
    ]
    kinds = (("heldout", "Held-out loss"), ("train", "Training loss"))
    return {
        "runs": described,
        "panels": [_panels(runs, letters, kind, title) for kind, title in kinds],
        "config": changed,
        "environment": differing([run.environment for run in runs]),
    }
