"""A ladder of runs for laws: it stops at its allowance, and goes on where it was killed."""

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoestring import atomic
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine, probe
from shoestring.budget.units import show_seconds
from shoestring.config import Tree, merge
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError, UsageError
from shoestring.jobs.job import Job
from shoestring.jobs.runner import Here, Runner
from shoestring.json_files import read_json
from shoestring.launch import ladder_run
from shoestring.launch.ladder_run import use
from shoestring.launch.request import TrainingRequest, planned, prepared
from shoestring.plan import rules
from shoestring.plan.ladder import SIZES, LadderRun, ladder, rule_batch
from shoestring.plan.memory import LADDER, learn, learned_runs
from shoestring.plan.pace import Paces
from shoestring.plan.planner import paces_for
from shoestring.plan.sizes import flops_per_token
from shoestring.train.stopping import StopRequest
from shoestring.train.trial import try_out
from shoestring.train.work_folder import held

log = logging.getLogger(__name__)

TRIAL_SHARE = 0.02
"""Of the allowance, that timing the steps of one size may take."""

CONTEXT = 256
"""Tokens of a window: that of every plan below 20 M tokens."""

SLACK = 1.1
"""A run is begun while what it is expected to take fits into what is left so many times over."""

VERSION = 1


@dataclass(frozen=True)
class Climbed:
    """How a ladder ended, for now.

    done: runs that are finished. failed: those that diverged, by name, with the reason. left: those that the allowance was not
    enough for. seconds: spent, by all. stopped: the signal that ended it, None where none did.
    """

    done: int
    failed: dict[str, str]
    left: int
    seconds: float
    stopped: int | None = None


class Ladder:
    """A ladder's folder: `ladder.json`, its plan; a folder for each run; `failed.json`.

    `Ladder.begin` plans it; `climb` makes the runs that are not made yet.
    """

    def __init__(self, path: Path) -> None:
        found = read_json(path / LADDER, dict, "an object")
        if found is None:
            raise UsageError(f"{path} is no ladder: it has no {LADDER}")
        if found.get("version") != VERSION:
            raise UsageError(f"{path / LADDER} has version {found.get('version')!r}, this program reads {VERSION}")
        try:
            self.rungs = [LadderRun(**one) for one in found["rungs"]]
            self.allowance, self.planning = float(found["allowance"]), float(found["planning"])
            self.asked: Tree = dict(found["asked"])
            self.threads = int(found["threads"])
        except (KeyError, TypeError, ValueError):
            raise ShoestringError(f"{path / LADDER} is damaged: it does not say what the ladder is") from None
        self.path = path

    @classmethod
    def begin(cls, path: Path, asked: Tree, allowance: float, threads: int) -> "Ladder":
        """Plan a new ladder.

        path: its folder, which must be new or empty.
        asked: what all runs have in common, as a recipe holds it.
        allowance: seconds, for all runs together and for planning them.
        threads: of the processor; 0: torch's own number.
        Raises: UsageError.
        """
        if path.exists() and any(path.iterdir()):
            raise UsageError(f"{path} exists and is not empty: name another with --out, or go on with it by --resume")
        _refuse_varied(asked)
        name = _optimizer(asked)
        if name not in rules.RATES:
            raise UsageError(f"optim = {name}: a ladder needs rates to begin with, known for {', '.join(rules.RATES)}")
        use(threads)
        ledger = Ledger()
        with ledger.clock("start"):
            machine = probe()
        common = merge({"execution": {"compile": "none", "threads": threads}}, asked)
        first = TrainingRequest.of(merge({"budget": f"{allowance:.0f}s"}, common))
        dataset = prepared(first, ledger.clock("data"))
        paces = _paces(common, dataset, machine, allowance, ledger)
        planning = ledger.totals.wall_clock - ledger.totals.seconds.get("data", 0.0)
        rungs = ladder(allowance - planning, paces, context=_context(common))
        return cls.write(path, rungs, common, allowance, threads, planning)

    @classmethod
    def write(
        cls, path: Path, rungs: Sequence[LadderRun], asked: Tree, allowance: float, threads: int, planning: float = 0.0
    ) -> "Ladder":
        """A ladder of these runs, in the order in which they are to be made. planning: seconds spent on it so far."""
        path.mkdir(parents=True, exist_ok=True)
        content = {
            "version": VERSION,
            "allowance": allowance,
            "planning": planning,
            "threads": threads,
            "asked": asked,
            "rungs": [rung.as_json() for rung in rungs],
        }
        atomic.write_text(path / LADDER, json.dumps(content, indent=1) + "\n")
        return cls(path)

    def seconds(self) -> float:
        """Spent so far: planning, and all runs that have ended."""
        return self.planning + sum(self._summary(rung).get("seconds", 0.0) for rung in self.rungs)

    def _summary(self, rung: LadderRun) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.path / rung.name / "summary.json", dict, "the summary of a run") or {}
        return found

    def finished(self, rung: LadderRun) -> bool:
        return self._summary(rung).get("stopped") == "finished"

    def climb(self, runner: Runner | None = None, *, keep_runs: bool = False) -> Climbed:
        """Make the runs that are not made yet, until the allowance is spent.

        Each finished run is kept where plans learn from. A run that was killed goes on from its last checkpoint, where it is
        made on this machine.

        runner: makes the runs; None: this process, one after the other. keep_runs: keep their checkpoints.
        Raises: UsageError where another process is at work here; Lost, after all other runs, as `Runner.map` does.
        """
        with held(self.path):
            use(self.threads)
            failed = dict(read_json(self.path / "failed.json", dict, "an object") or {})
            under_way = dict[str, LadderRun]()
            with (
                StopRequest() as stop,
                closing((runner or Here()).map(self._jobs(failed, under_way, keep_runs))) as all_made,
            ):
                for made in all_made:
                    assert made.job.folder is not None
                    under_way.pop(name := made.job.folder.name)
                    told = made.value or {"failed": f"its process ended with status {made.status}: {made.said}"}
                    if "refused" in told:
                        raise UsageError(told["refused"])
                    if "failed" in told:
                        failed[name] = told["failed"]
                        atomic.write_text(self.path / "failed.json", json.dumps(failed, indent=1) + "\n")
                        log.warning(f"{name} failed: {told['failed']}")
                        continue
                    if told["signal"] is not None:
                        return self._climbed(failed, told["signal"])
                    if not keep_runs:
                        shutil.rmtree(made.job.folder / "checkpoints", ignore_errors=True)
                    learn([made.job.folder], learned_runs())
                    if stop.asked is not None:
                        return self._climbed(failed, stop.asked)
            return self._climbed(failed, None)

    def _jobs(self, failed: Collection[str], under_way: dict[str, LadderRun], keep_runs: bool) -> Iterator[Job]:
        """The runs to make, as long as the allowance lasts for what is under way and one more."""
        for number, rung in enumerate(self.rungs, start=1):
            if self.finished(rung) or rung.name in failed:
                continue
            slower = self._slower()
            left = self.allowance - self.seconds() - sum(one.seconds * slower for one in under_way.values())
            if rung.seconds * slower * SLACK > left:
                return
            under_way[rung.name] = rung
            log.info(f"{show_seconds(max(left, 0.0))} of the allowance left")
            yield Job(
                f"run {number} of {len(self.rungs)}: {rung.name}",
                f"{ladder_run.__name__}:train",
                {"recipe": self._recipe(rung), "threads": self.threads},
                self.path / rung.name,
                leaves=() if keep_runs else ("checkpoints",),
                threads=self.threads,
            )

    def _climbed(self, failed: dict[str, str], stopped: int | None) -> Climbed:
        done = [rung for rung in self.rungs if self.finished(rung)]
        if done:  # one that was killed between its end and its keeping is kept now
            learn([self.path / rung.name for rung in done], learned_runs())
        return Climbed(len(done), failed, len(self.rungs) - len(done) - len(failed), self.seconds(), stopped)

    def _slower(self) -> float:
        """How many times longer than expected the runs so far took."""
        pairs = [(self._summary(rung).get("seconds", 0.0), rung.seconds) for rung in self.rungs if self.finished(rung)]
        return max(1.0, sum(took for took, _ in pairs) / sum(said for _, said in pairs)) if pairs else 1.0

    def _recipe(self, rung: LadderRun) -> Tree:
        own = rung.asked(_optimizer(self.asked))
        rates = {key: merge(own[key], _table(self.asked.get(key, {}))) for key in ("optim", "fallback")}
        return {**merge(own, self.asked), **rates}


def _refuse_varied(asked: Tree) -> None:
    """Raises: UsageError for a key whose value differs from run to run."""
    for section, keys in (("model", ("layers", "width", "heads", "base")), ("train", ("batch",)), ("optim", ("lr",))):
        for key in keys:
            if key in _table(asked.get(section, {})):
                raise UsageError(f"{section}.{key} differs from run to run of a ladder: leave it out")


def _context(asked: Tree) -> int:
    return int(_table(asked.get("model", {})).get("context", CONTEXT))


def _table(section: Any) -> Tree:
    return {"name": section} if isinstance(section, str) else dict(section)


def _optimizer(asked: Tree) -> str:
    return str(_table(asked.get("optim", {})).get("name", rules.OPTIMIZER))


def _paces(common: Tree, dataset: Dataset, machine: Machine, allowance: float, ledger: Ledger) -> list[float]:
    """Seconds of a token of each size, from a few steps of each; of those too slow for that, by the ones before."""
    found: list[float] = []
    paces: Paces | None = None
    for shape in rules.LADDER[:SIZES]:
        context = _context(common)
        rung = LadderRun(
            "", shape.layers, shape.width, shape.head_width, context, 10**6, rule_batch(1e6, context), 1.0, 0.0
        )
        request = TrainingRequest.of(merge(rung.asked(_optimizer(common)), common))
        paces = paces or paces_for(machine, request.budget, request.asked)
        _, config = planned(replace(request, learns=False), machine, dataset, 0.0, paces)
        each = flops_per_token(config.model)
        seconds = min(10.0, TRIAL_SHARE * allowance)
        pace = try_out(config, dataset, machine, ledger, seconds, allowance)
        if pace is not None:
            paces.add(config.model, each, pace)
        found.append(paces.of(config.model, each).per_token)
    return found
