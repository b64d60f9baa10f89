"""Runs of the real trainer for a comparison, and the records made of what they leave behind."""

import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

from shoestring.compare import worker
from shoestring.compare.conduct import PlannedRun
from shoestring.compare.recipes import check_workers, with_settings
from shoestring.compare.record import RunRecord
from shoestring.config import to_toml
from shoestring.errors import UsageError
from shoestring.jobs.job import Job, Made
from shoestring.jobs.processes import Processes
from shoestring.jobs.runner import Runner
from shoestring.train.config import RunConfig
from shoestring.train.execution import preloaded
from shoestring.train.run_folder import RunFolder

HEAVY = ("checkpoints", "tokenizer")
"""Folders of a run that a comparison has no more use for once its record is made."""

POINT = ("progress", "seconds", "flops", "tokens", "loss")
"""What a record keeps of a held-out evaluation."""


class Trainer:
    """Trains arms with seeds: the `Trials` of the real trainer.

    arms: resolved configurations by name.
    folder: takes one run folder a run; what a killed run left there is removed.
    runner: makes the runs; None: processes of this machine, one at a time.
    data: by arm, the fingerprint of the data it must find, wherever it is trained; an arm without one takes what is there.
    keep_runs: keep the folders of finished runs whole, checkpoints and all.
    places: have each record say which machine its run was made on.
    Raises: UsageError as `check_workers`.
    """

    def __init__(
        self,
        arms: Mapping[str, RunConfig],
        folder: Path,
        *,
        runner: Runner | None = None,
        data: Mapping[str, str] | None = None,
        keep_runs: bool = False,
        places: bool = False,
    ) -> None:
        check_workers(arms)
        self.places = places
        self.arms, self.folder, self.keep_runs, self.data = arms, folder, keep_runs, data or {}
        self.runner: Runner = runner or processes(arms)

    def map(self, asked: Iterable[PlannedRun]) -> Generator[RunRecord, None, None]:
        """As `Trials.map`."""
        runs = dict[str, PlannedRun]()

        def jobs() -> Iterator[Job]:
            for one in asked:
                job = self._job(one)
                runs[job.name] = one
                yield job

        with closing(self.runner.map(jobs())) as made:
            for each in made:
                yield self._record(runs[each.job.name], each)

    def _job(self, one: PlannedRun) -> Job:
        config = replace(with_settings(self.arms[one.arm], one.settings), seed=one.seed)
        words = [one.arm, one.purpose, *(f"{key.split('.')[-1]}-{value}" for key, value in one.settings.items())]
        path = self.folder / "-".join([*(words if one.purpose == "tune" else [one.arm]), f"seed-{one.seed}"])
        _clear(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        return Job(
            one.title,
            f"{worker.__name__}:train",
            {"configuration": to_toml(config), "data": self.data.get(one.arm)},
            path,
            leaves=() if self.keep_runs else HEAVY,
            threads=config.execution.threads,
            gpus=int(config.execution.device == "cuda"),
        )

    def _record(self, one: PlannedRun, made: Made) -> RunRecord:
        path = made.job.folder
        assert path is not None
        if made.value and made.machine:
            raise UsageError(f"{made.machine.host}: {made.value['refused']}")
        found = record(path, one.arm, one.seed, one.settings, one.purpose, made.status)
        if not self.keep_runs:
            for name in HEAVY:
                shutil.rmtree(path / name, ignore_errors=True)
        return replace(found, made_on=made.machine.as_json) if self.places and made.machine else found


def processes(arms: Mapping[str, RunConfig], at_once: int = 1) -> Processes:
    """Processes of this machine in which runs of these arms start in no time."""
    return Processes(at_once, [worker.__name__, *preloaded(config.execution for config in arms.values())])


def record(
    path: Path, arm: str, seed: int, settings: Mapping[str, Any], purpose: Literal["tune", "judge"], status: int
) -> RunRecord:
    """The record of the run in the folder `path`, whose process ended with `status`."""
    folder = RunFolder(path)
    summary = folder.read_summary()
    stopped = summary.get("stopped", "failed")
    if stopped == "interrupted":
        raise KeyboardInterrupt
    if summary.get("heldout_cut_short"):
        stopped, summary["reason"] = (
            "failed",
            "its last evaluation was cut short, so its loss is of less text than the others'",
        )
    lines = folder.read_metrics()
    return RunRecord(
        arm=arm,
        seed=seed,
        purpose=purpose,
        settings=dict(settings),
        stopped="finished" if stopped == "finished" and not status else "failed",
        reason="" if stopped == "finished" and not status else summary.get("reason") or _last_words(path, status),
        loss=summary.get("heldout_loss"),
        bits_per_byte=summary.get("bits_per_byte"),
        seconds=summary.get("seconds", 0.0),
        flops=summary.get("flops", 0.0),
        tokens=summary.get("tokens", 0),
        steps=summary.get("steps", 0),
        step_seconds=_step_seconds([line for line in lines if line["kind"] == "train"]),
        peak_memory=summary.get("peak_memory", 0),
        parameters=summary.get("parameters", 0),
        curve=tuple({key: line[key] for key in POINT} for line in lines if line["kind"] == "heldout"),
    )


def _clear(path: Path) -> None:
    """Remove what a killed comparison left of a run. The run may have outlived it by a moment: its end is waited for."""
    if path.is_dir():
        with RunFolder(path).held(wait=f"waiting for a run of an earlier process in {path}"):
            shutil.rmtree(path)


def _step_seconds(lines: list[dict[str, Any]]) -> float | None:
    """Median over the stretches between two lines of the seconds of a step; None where there are fewer than three."""
    each = [
        (now["tokens"] - before["tokens"]) / now["tokens_per_second"] / (now["step"] - before["step"])
        for before, now in pairwise(lines)
    ]
    return median(each) if len(each) > 2 else None


def _last_words(path: Path, status: int) -> str:
    try:
        lines = (path / worker.OUTPUT).read_text().strip().splitlines()
    except OSError:
        lines = []
    said = lines[-1].removeprefix("failed: ") if lines else "it said nothing"
    return f"{said} (exit status {status})" if status >= 0 else f"killed by signal {-status}; {said}"
