"""Carrying a comparison out: trials, judged seeds, added seeds, in an order that favours no arm, resumed after a kill."""

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from shoestring.compare.arms import check, choose
from shoestring.compare.design import Design
from shoestring.compare.record import Key, Purpose, RunLog, RunRecord, settings_text
from shoestring.compare.standing import standing
from shoestring.errors import UsageError
from shoestring.jobs.job import JobMachine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedRun:
    """A run to be made. what: which of all runs it is, for people."""

    arm: str
    seed: int
    settings: Mapping[str, Any]
    purpose: Purpose
    what: str

    @property
    def key(self) -> Key:
        """What tells it from every other of a comparison."""
        return (self.purpose, self.arm, self.seed, settings_text(self.settings))

    @property
    def title(self) -> str:
        """A line for people."""
        return f"{self.what}: {self.arm}" + (f" with {settings_text(self.settings)}" if self.settings else "")


class Trials(Protocol):
    """Makes the runs of a comparison: `Trainer` does."""

    def map(self, asked: Iterable[PlannedRun]) -> Generator[RunRecord, None, None]:
        """Make all of these runs, several at a time or not; each is yielded when it has ended.

        One that fails for a reason of its own is a record that says so. An exception ends the comparison, to be resumed; those
        that were yielded before it are kept. To close the generator ends the runs under way.
        """
        ...


def rotated(arms: Sequence[str], places: int) -> list[str]:
    """The arms in order, begun `places` later: over the seeds each arm runs first, second ... about equally often, so a
    machine that grows slower or busier as time goes by favours none."""
    start = places % len(arms)
    return [*arms[start:], *arms[:start]]


class _Session:
    """Runs what the log does not hold yet."""

    def __init__(self, design: Design, runs: Trials, run_log: RunLog) -> None:
        self.design, self.runs, self.log = design, runs, run_log
        self.records = run_log.read()
        check(self.records, design)
        self.done = {record.key for record in self.records}
        if self.records:
            log.info(f"{len(self.records)} runs were made before: they count, and are not made again")

    def make(self, asked: Iterable[PlannedRun]) -> None:
        """Make those of these runs that have not been made; each is logged when it ends."""
        left = {one.key: one for one in asked if one.key not in self.done}
        if not left:
            return
        with closing(self.runs.map(list(left.values()))) as made:
            for record in made:
                if left.pop(record.key, None) is None:
                    raise ValueError(f"the runner returned {record.key}, which it was not asked for, or twice")
                self._keep(record)
        if left:
            raise ValueError(f"the runner was asked for {next(iter(left))} and did not return it")

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
            PlannedRun(arm, design.tuning_seed, design.trials(arm)[place], "tune", f"trial {place + 1} of {allowance}")
            for place in range(allowance)
            for arm in rotated(design.arms, place)
        )

    def judge(self, arms: Sequence[str], chosen: Mapping[str, Mapping[str, Any]]) -> None:
        """Every planned seed by every arm, then added seeds by the base and whichever candidates are not settled."""
        design, seeds = self.design, self.design.all_seeds

        def jobs(place: int, running: Sequence[str]) -> list[PlannedRun]:
            what = f"seed {seeds[place]}, {place + 1} of {_most(design)}"
            return [PlannedRun(arm, seeds[place], chosen[arm], "judge", what) for arm in rotated(running, place)]

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
    """Raises: UsageError for several runs at a time on one machine that would take their budget from each other."""
    if at_once > 1 and design.unit == "seconds":
        raise UsageError("runs of a budget in seconds are made one at a time: they would take time from each other")


def check_alike(design: Design, machines: Sequence[JobMachine]) -> None:
    """Raises: UsageError for equal seconds on machines that are not alike, unless the design has them count."""
    by_kind = {machine.fingerprint: machine.host for machine in machines}
    if design.unit == "seconds" and len(by_kind) > 1 and not design.unlike_machines:
        hosts = ", ".join(f"{machine.host} ({machine.device}, {machine.fingerprint})" for machine in machines)
        raise UsageError(
            f"a second does not buy the same on {hosts}: compare at a budget in tokens or FLOPs, or force it with "
            "--unlike-machines"
        )


def _most(design: Design) -> str:
    return f"at most {design.cap}" if design.sequential else str(len(design.seeds))


def conduct(design: Design, runs: Trials, run_log: RunLog) -> list[RunRecord]:
    """Make every run of a comparison that `run_log` does not hold, and return all of them, for `judge`.

    First every arm's tuning trials, one of each arm at a time; then each seed by every arm, with the settings of its best
    trial. An arm all of whose trials failed is not judged, and no other is where it is the base. With `until_decided`,
    further seeds by the base and each candidate that is not yet settled, up to the cap. Only the log decides what comes
    next, so a comparison that was killed goes on as if it had not been.

    runs: makes them; they are kept as they end.
    Raises: ShoestringError when the log holds runs that are no part of the design; ValueError when other runs are returned than
    were asked for; and what `runs` raises.
    """
    session = _Session(design, runs, run_log)
    session.tune()
    chosen = {arm: settings for arm in design.arms if (settings := choose(session.records, design, arm)) is not None}
    for arm in design.arms:
        if arm not in chosen:
            log.warning(f"every trial of {arm} failed: it is not judged")
    arms = [arm for arm in design.arms if arm in chosen]
    if design.base in chosen and len(arms) > 1:
        session.judge(arms, chosen)
    return session.records
