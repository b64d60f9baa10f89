"""What a person sees while a run goes on: a progress bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from shoestring.budget import busy_waiting
from shoestring.budget.units import show, show_seconds

PLAIN_SECONDS = 10.0


class LiveView:
    """Is given the lines of metrics. peak: FLOP/s of the device's large matrix products, for the share of peak."""

    def __init__(self, console: Console, peak: float, flops_per_token: float, budget_seconds: float | None) -> None:
        self.console, self.peak, self.flops_per_token, self.budget_seconds = (
            console,
            peak,
            flops_per_token,
            budget_seconds,
        )
        self.heldout = ""
        self.last_plain = time.monotonic()
        self.first: tuple[float, float] | None = None
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=False,
        )
        self.task = self.progress.add_task("budget", total=1.0, text="starting")

    def __enter__(self) -> "LiveView":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def show(self, line: Mapping[str, Any]) -> None:
        """A line of metrics, shown."""
        if line["kind"] == "heldout":
            self.heldout = f"  held-out {line['loss']:.3f} ({line['bits_per_byte']:.3f} bits/byte)"
            return
        share = line["tokens_per_second"] * self.flops_per_token / self.peak
        rate = line["tokens_per_second"] * line.get("processes", 1)
        text = (
            f"loss {line['loss']:.3f}  {rate:,.0f} tok/s  {share:.0%} of peak  "
            f"left {self._left(line)}{self.heldout}{_exchanged(line)}"
            f"{'  (other processes take this machine)' * busy_waiting.crowded()}"
        )
        if self.console.is_terminal:
            self.progress.update(self.task, completed=line["progress"], text=text)
        elif time.monotonic() - self.last_plain >= PLAIN_SECONDS:
            self.last_plain = time.monotonic()
            self.console.print(
                f"  {line['progress']:4.0%}  step {line['step']}  {text}", highlight=False, soft_wrap=True
            )

    def _left(self, line: Mapping[str, Any]) -> str:
        if self.budget_seconds is not None:
            return show_seconds(max(0.0, self.budget_seconds - line["seconds"]))
        self.first = self.first or (line["progress"], line["seconds"])
        gone, since = line["progress"] - self.first[0], line["seconds"] - self.first[1]
        return show_seconds((1 - line["progress"]) * since / gone) if gone > 0 else "?"


def _exchanged(line: Mapping[str, Any]) -> str:
    """What the exchanges between workers came to so far; '' where there are none."""
    if line.get("workers", 1) < 2:
        return ""
    under_way = line["sync_exposed"] + line["sync_hidden"]
    within = f", {show('bytes', line['within'])} within" if "within" in line else ""
    rate = f" at {show('bytes', line['sent'] / under_way)}/s" if under_way else ""
    return (
        f"  {line['workers']} workers, sent {show('bytes', line['sent'])}{rate}{within}, waited {line['sync_exposed']:.1f} s, "
        f"hidden {line['sync_hidden']:.1f} s"
    )
