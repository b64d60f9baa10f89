"""Carrying a comparison out: trials, judged seeds, added seeds, in an order that favours no arm, resumed after a kill."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from shoestring.compare.arms import check, choose
from shoestring.compare.design import Design
from shoestring.compare.record import Key, Purpose, RunLog, RunRecord, settings_text
from shoestring.compare.standing import standing
from shoestring.errors import UsageError

log = logging.getLogger(__name__)

Runner = Callable[[str, int, Mapping[str, Any], Purpose], RunRecord]
"""(arm, seed, settings, purpose) -> the run. One that fails for a reason of its own returns a record that says so; an
exception ends the comparison, to be resumed."""


def rotated(arms: Sequence[str], places: int) -> list[str]:
    """The arms in order, begun `places` later: over the seeds each arm runs first, second ... about equally often, so a
    machine that grows slower or busier as time goes by favours none."""
    start = places % len(arms)
    return [*arms[start:], *arms[:start]]


@dataclass(frozen=True)
class _Job:
    """A run to be made. what: for people."""

    arm: str
    seed: int
    settings: Mapping[str, Any]
    purpose: Purpose
    what: str

    @property
    def key(self) -> Key:
        return (self.purpose, self.arm, self.seed, settings_text(self.settings))


class _Session:
    """Runs what the log does not hold yet."""

    def __init__(
        self,
        design: Design,
        run: Runner,
        run_log: RunLog,
        at_once: int,
        stop: Callable[[], None],
    ) -> None:
        self.design, self.run, self.log = design, run, run_log
        self.at_once, self.stop = at_once, stop
        self.records = run_log.read()
        check(self.records, design)
        self.done = {record.key for record in self.records}
        if self.records:
            log.info(f"{len(self.records)} runs were made before: they count, and are not made again")

    def make(self, jobs: Iterable[_Job]) -> None:
        """Make those of these runs that have not been made, `at_once` at a time; each is logged when it ends."""
        left = [job for job in jobs if job.key not in self.done]
        if self.at_once == 1:
            for job in left:
                self._keep(self._made(job))
            return
        halted = threading.Event()

        def begin(job: _Job) -> RunRecord | None:
            if halted.is_set():
                return None
            try:
                return self._made(job)
            except BaseException:
                halted.set()
                raise

        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                for each in as_completed([pool.submit(begin, job) for job in left]):
                    if (record := each.result()) is not None:
                        self._keep(record)
            except BaseException:
                halted.set()
                self.stop()
                raise

    def _made(self, job: _Job) -> RunRecord:
        log.info(f"{job.what}: {job.arm}" + (f" with {settings_text(job.settings)}" if job.settings else ""))
        record = self.run(job.arm, job.seed, job.settings, job.purpose)
        if record.key != job.key:
            raise ValueError(f"the runner was asked for {job.key} and returned {record.key}")
        return record

    def _keep(self, record: RunRecord) -> None:
        self.log.append(record)
        self.records.append(record)
        self.done.add(record.key)
        ended = f"failed: {record.failure}" if record.failure else f"ends at {record.loss:.4f} nats a token"
        log.info(f"{record.arm} {ended}")

    def tune(self) -> None:
        """Every arm's trials, interleaved."""
        design = self.design
        allowance = len(design.trials(design.base))
        self.make(
            _Job(arm, design.tuning_seed, design.trials(arm)[place], "tune", f"trial {place + 1} of {allowance}")
            for place in range(allowance)
            for arm in rotated(design.arms, place)
        )

    def judge(self, arms: Sequence[str], chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """Every planned seed by every arm, then added seeds by the base and whichever candidates are not settled."""
        design, seeds = self.design, self.design.all_seeds

        def jobs(place: int, running: Sequence[str]) -> list[_Job]:
            what = f"seed {seeds[place]}, {place + 1} of {_most(design)}"
            return [_Job(arm, seeds[place], chosen[arm], "judge", what) for arm in rotated(running, place)]

        planned = len(design.seeds)
        self.make(job for place in range(planned) for job in jobs(place, arms))
        for place in range(planned, len(seeds)):
            # decided on the seeds before this one alone, so that a resumed comparison goes the same way
            before = [r for r in self.records if r.purpose == "tune" or r.seed in seeds[:place]]
            open_ones = [arm for arm in arms if arm != design.base and not standing(before, design, arm).settled]
            if not open_ones:
                return
            self.make(jobs(place, [design.base, *open_ones]))


def check_at_once(design: Design, at_once: int) -> None:
    """Raises: UsageError for several runs at a time that would take their budget from each other."""
    if at_once < 1:
        raise UsageError(f"{at_once} runs at once are none: give 1 or more")
    if at_once > 1 and design.unit == "seconds":
        raise UsageError("runs of a budget in seconds are made one at a time: they would take time from each other")


def _most(design: Design) -> str:
    return f"at most {design.cap}" if design.sequential else str(len(design.seeds))


def conduct(
    design: Design,
    run: Runner,
    run_log: RunLog,
    *,
    at_once: int = 1,
    stop: Callable[[], None] = lambda: None,
) -> list[RunRecord]:
    """Make every run of a comparison that `run_log` does not hold, and return all of them, for `judge`.

    First every arm's tuning trials, one of each arm at a time; then each seed by every arm, with the settings of its best
    trial. An arm all of whose trials failed is not judged, and no other is where it is the base. With `until_decided`,
    further seeds by the base and each candidate that is not yet settled, up to the cap. Only the log decides what comes
    next, so a comparison that was killed goes on as if it had not been.

    at_once: how many runs are made at a time, which `run` must allow; they are kept as they end.
    stop: ends those under way when one of them raises.
    Raises: UsageError as `check_at_once` does; ShoestringError when the log holds runs that are no part of the design;
    ValueError when the runner returns another run than it was asked for; and what `run` raises.
    """
    check_at_once(design, at_once)
    session = _Session(design, run, run_log, at_once, stop)
    session.tune()
    chosen = {arm: settings for arm in design.arms if (settings := choose(session.records, design, arm)) is not None}
    for arm in design.arms:
        if arm not in chosen:
            log.warning(f"every trial of {arm} failed: it is not judged")
    arms = [arm for arm in design.arms if arm in chosen]
    if design.base in chosen and len(arms) > 1:
        session.judge(arms, chosen)
    return session.records
