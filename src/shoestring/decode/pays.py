"""Whether drafts save time: measured while answers are written."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from shoestring.errors import UsageError


@dataclass
class Load:
    """What was found of drafts where so many rows decode at a time.

    drafting: whether they are in use. trial: whether windows with and without drafts alternate now.
    seconds: a written token, of each window of the trial, by whether drafts were used.
    passes: of the window, or outside a trial since the last.
    pause: passes until the next trial.
    taken, written: seconds and tokens of the window so far.
    failed: trials that drafts lost, one after the other.
    """

    drafting: bool = True
    trial: bool = True
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    passes: int = 0
    pause: int = 0
    taken: float = 0.0
    written: int = 0
    failed: int = 0


class Pays:
    """Measures the seconds of a written token with drafts and without, and does without them where they are slower.

    A trial is `windows` windows of `window` passes with drafts and as many without, in turn; what counts is the median of each
    kind. Drafts in use are given up where a token takes more than (1 + margin) of what it takes without; drafts that were given up
    are used again below (1 - margin); between the two nothing changes. The first pass of a window does not count: a drafter that
    was not asked for a while has to catch up. A trial follows `pause` passes after the last, twice as many each time that drafts
    lose again.

    What pays for one row need not pay for thirty: each power of two of rows is measured by itself. With exact acceptance the text
    is the same either way.

    window: passes. windows: of each kind, in a trial. margin: share. pause: passes. clock: gives seconds.
    """

    def __init__(
        self,
        *,
        window: int = 8,
        windows: int = 3,
        margin: float = 0.03,
        pause: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if window < 2 or windows < 1 or not 0 <= margin < 1 or pause < 1:
            raise UsageError(
                "pays: a window has 2 passes or more, a trial 1 window or more, the margin is below 1, and a pause 1 pass or more"
            )
        self.window, self.windows, self.margin, self.pause, self._clock = window, windows, margin, pause, clock
        self._loads: dict[int, Load] = {}
        self._load, self._rows, self._began = Load(), 0, 0.0

    def drafting(self, rows: int) -> bool:
        """Whether drafts are to be made for so many rows, in a pass that is not measured."""
        return self._at(rows).drafting

    def begin(self, rows: int) -> bool:
        """A pass of so many rows begins, all of which decode. Returns whether drafts are to be made for it."""
        load = self._at(rows)
        if rows != self._rows:  # a window is of one number of rows
            load.passes, load.taken, load.written = (0, 0.0, 0) if load.trial else (load.passes, 0.0, 0)
        self._load, self._rows, self._began = load, rows, self._clock()
        return self._wanted(load)

    def end(self, written: int) -> str | None:
        """The pass has ended, and brought so many tokens. Returns a line for the user where drafts are given up or used again."""
        load, seconds = self._load, self._clock() - self._began
        load.passes += 1
        if not load.trial:
            if load.passes >= load.pause:
                load.trial, load.passes = True, 0
                load.seconds = {True: [], False: []}
            return None
        if load.passes > 1:
            load.taken, load.written = load.taken + seconds, load.written + written
        if load.passes < self.window:
            return None
        load.seconds[self._wanted(load)].append(load.taken / max(load.written, 1))
        load.passes, load.taken, load.written = 0, 0.0, 0
        return self._judged(load) if len(load.seconds[False]) == self.windows else None

    def _judged(self, load: Load) -> str | None:
        """Draw the conclusion of a trial."""
        using, without = median(load.seconds[True]), median(load.seconds[False])
        slower, before = using > (1 + self.margin) * without, load.drafting
        load.drafting = not slower if before else using < (1 - self.margin) * without
        load.failed = 0 if load.drafting else load.failed + 1
        load.trial, load.pause = False, self.pause * 2 ** min(max(load.failed - 1, 0), 6)
        if load.drafting == before:
            return None
        what = "are used again" if load.drafting else "do not pay and are switched off"
        rows = f"{self._rows} row{'s' if self._rows > 1 else ''}"
        return f"drafts {what} at {rows}: {using * 1e3:.3g} ms a token with them, {without * 1e3:.3g} ms without"

    def _at(self, rows: int) -> Load:
        return self._loads.setdefault(max(rows - 1, 0).bit_length(), Load())

    @staticmethod
    def _wanted(load: Load) -> bool:
        """Whether the present window is one with drafts: the first of a trial is, then every other."""
        if not load.trial:
            return load.drafting
        return len(load.seconds[True]) == len(load.seconds[False])
