"""Failures drawn from a seed, and a thread that makes them happen: kill -9, by the clock."""

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from shoestring.errors import UsageError
from shoestring.sync.pipeline.engine import Pipeline


@dataclass(frozen=True, order=True)
class Fault:
    """at: seconds from the start.
    stage: which dies.
    """

    at: float
    stage: int


def draw_faults(
    rate: float, *, hour: float, seconds: float, stages: Sequence[int], seed: int, gap: float = 0.0
) -> list[Fault]:
    """The faults of `seconds` seconds, in order: each stage fails with probability `rate` in any `hour` seconds.

    A stage's failures are a Poisson process of intensity -ln(1 - rate) / hour, drawn from the seed and the stage alone,
    so that a longer run begins as a shorter one does.

    hour: what stands for an hour in a short run; where a step takes hour / 50 seconds, the chances a step are those of
    the public code of CheckFree (arXiv:2506.15461) for its 500 M model: 0.0010 at 5 % and 0.0021 at 10 %, where it has
    0.0009 and 0.002.
    gap: a fault within so many seconds after one of the same or a neighbouring stage is left out, as the paper has no
    two neighbours fail together.

    Raises: UsageError for a rate outside [0, 1) or an hour that is not positive.
    """
    if not 0 <= rate < 1 or hour <= 0:
        raise UsageError(
            f"a rate of {rate} an hour of {hour} seconds is none: the rate is in [0, 1), the hour positive"
        )
    drawn: list[Fault] = []
    for stage in stages:
        chance, at = random.Random(f"{seed}/{stage}"), 0.0
        while rate:
            at += -math.log(1 - chance.random()) * hour / -math.log1p(-rate)
            if at >= seconds:
                break
            drawn.append(Fault(at, stage))
    kept: list[Fault] = []
    for fault in sorted(drawn):
        if not any(fault.at - old.at < gap and abs(fault.stage - old.stage) <= 1 for old in kept):
            kept.append(fault)
    return kept


class FaultInjector(threading.Thread):
    """Kills the processes of a pipeline's stages, each at its time after `start`, until `stop`.

    A fault whose time comes while the last one has not been recovered from waits until it has.

    done: faults that happened.
    """

    def __init__(self, pipeline: Pipeline, faults: Sequence[Fault]) -> None:
        super().__init__(daemon=True)
        self._pipeline, self._faults, self._stopped = pipeline, faults, threading.Event()
        self.done: list[Fault] = []

    def run(self) -> None:
        began = time.monotonic()
        for fault in self._faults:
            if self._stopped.wait(max(0.0, began + fault.at - time.monotonic())):
                return
            while self._pipeline.accounts.failures < len(self.done) or self._pipeline.recovering:
                if self._stopped.wait(0.02):
                    return
            with contextlib.suppress(ProcessLookupError):  # it may have died by itself
                os.kill(self._pipeline.processes()[fault.stage], signal.SIGKILL)
            self.done.append(fault)

    def stop(self) -> None:
        """No more faults after this returns."""
        self._stopped.set()
        self.join()
