"""Runs of the real trainer for a comparison, and the records made of what they leave behind."""

import multiprocessing
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from statistics import median
from typing import Any, Literal

from shoestring import atomic
from shoestring.compare import worker
from shoestring.compare.recipes import check_workers, with_settings
from shoestring.compare.record import RunRecord
from shoestring.config import to_toml
from shoestring.train.config import RunConfig
from shoestring.train.execution import preloaded
from shoestring.train.run_folder import RunFolder

HEAVY = ("checkpoints", "tokenizer")
"""Folders of a run that a comparison has no more use for once its record is made."""

POINT = ("progress", "seconds", "flops", "tokens", "loss")
"""What a record keeps of a held-out evaluation."""


class Trainer:
    """Trains an arm with a seed: the runner that `conduct` calls, from several threads where it makes several runs at once.

    arms: resolved configurations by name. folder: takes one run folder a run; what a killed run left there is removed.
    keep_runs: keep the folders of finished runs whole, checkpoints and all. Raises: UsageError as `check_workers`.
    """

    def __init__(self, arms: Mapping[str, RunConfig], folder: Path, *, keep_runs: bool = False) -> None:
        check_workers(arms)
        self.arms, self.folder, self.keep_runs = arms, folder, keep_runs
        # forked from a server that has imported everything and computed nothing: a run starts in no time, and clean
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            [worker.__name__, *preloaded(config.execution for config in arms.values())]
        )
        # to start a process looks after all others, and so does to join one: two that do so at once lose exit codes
        self._lock = threading.Lock()
        self._running: set[multiprocessing.process.BaseProcess] = set()
        self._stopping = False

    def stop(self) -> None:
        """Ask the runs under way, and any begun from now on, to stop at their next step; their folders are made anew next
        time."""
        with self._lock:
            self._stopping = True
            for process in self._running:
                process.terminate()

    def __call__(
        self, arm: str, seed: int, settings: Mapping[str, Any], purpose: Literal["tune", "judge"]
    ) -> RunRecord:
        config = replace(with_settings(self.arms[arm], settings), seed=seed)
        words = [arm, purpose, *(f"{key.split('.')[-1]}-{value}" for key, value in settings.items()), f"seed-{seed}"]
        path = self.folder / "-".join(words if purpose == "tune" else [arm, f"seed-{seed}"])
        _clear(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = path.with_suffix(".toml") if "." not in path.name else path.parent / f"{path.name}.toml"
        atomic.write_text(recipe, to_toml(config))
        process = self._context.Process(target=worker.train, args=(str(recipe), str(path)))
        with self._lock:
            process.start()
            self._running.add(process)
            if self._stopping:
                process.terminate()
        try:
            wait([process.sentinel])
        except BaseException:
            self.stop()
            wait([process.sentinel])
            raise
        finally:
            with self._lock:
                self._running.discard(process)
                process.join()
        recipe.unlink()
        found = record(path, arm, seed, settings, purpose, process.exitcode or 0)
        if not self.keep_runs:
            for name in HEAVY:
                shutil.rmtree(path / name, ignore_errors=True)
        return found


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
