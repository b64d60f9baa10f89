"""A sweep over rates and batches before a model is tuned, within the same budget."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring import atomic
from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Totals, read_ledger
from shoestring.config import Choice, Tree, merge
from shoestring.errors import ShoestringError, UsageError
from shoestring.launch.launch import Launch
from shoestring.launch.request import TrainingRequest
from shoestring.launch.tuning import tuning_request
from shoestring.train.base import TUNING
from shoestring.train.run_folder import RunFolder
from shoestring.tune.rate_to_batch import RateAndBatch, RateToBatch, RatioFound

log = logging.getLogger(__name__)

FIGURES = {"new": ("tuning", "new", "after"), "old": ("tuning", "old", "after")}
"""What is judged of each run, and where summary.json has it."""


@dataclass(frozen=True)
class TuningSpec:
    """What a model is tuned by; the fields are those of `tuning_request`."""

    place: str
    method: str
    asked: Tree
    old: str
    replay: float = 0.0

    def request(self, asked: Tree) -> TrainingRequest:
        """With these keys over its own."""
        return tuning_request(self.place, self.method, merge(self.asked, asked), self.old, self.replay)


@dataclass(frozen=True)
class Swept:
    """request: of the run that is left to make, with the setting that was found and the rest of the budget.
    signal: what interrupted the sweep; None: nothing. told: what it came to, as JSON values, sweep.json's.
    """

    request: TrainingRequest | None
    signal: int | None
    told: dict[str, Any]


def swept(tuning: TuningSpec, sweep: RateToBatch, share: float, folder: Path, launch: Launch) -> Swept:
    """Try each setting in a run of its own, with an equal part of a share of the budget.

    The rest of the budget is for the run that follows. A sweep that was stopped is gone on with by asking for it again: what is
    finished is not done again.

    folder: of the sweep: a run's folder for each setting, and sweep.json.
    Raises: UsageError, ShoestringError.
    """
    if not 0 < share < 1:
        raise UsageError(f"--sweep {share:g}: a share of the budget, above 0 and below 1")
    first = tuning.request({})
    settings = sweep.settings(_rate(first.asked.get("optim")), int(first.asked["train"]["batch"]))
    part = _scaled(first.budget, share / len(settings))
    tried = list[tuple[RateAndBatch, dict[str, Any]]]()
    for setting in settings:
        run = RunFolder(folder / f"rate-{setting.rate:.3g}-batch-{setting.batch}")
        asked = _with_setting(setting, part)
        try:
            done = _finished(run, tuning, asked, launch)
        except UsageError:
            raise
        except ShoestringError as error:  # of a rate that is too high, say
            log.warning(f"rate {setting.rate:.3g}, batch {setting.batch}: {error}")
            tried.append((setting, {}))
            continue
        if done is not None:
            return Swept(None, done, {})
        tried.append((setting, run.read_summary()))
    told = _told(tried, sweep, folder)
    atomic.write_text(folder / "sweep.json", json.dumps(told, indent=1) + "\n")
    found = sweep.found([(setting, _figure(summary, "new")) for setting, summary in tried]).best
    rest = _scaled(first.budget, 1 - share)
    return Swept(tuning.request(_with_setting(found, rest)), None, told)


def _rate(optimizer: Any) -> float:
    """The learning rate of an optimiser as a recipe has it; None: what tuning begins with."""
    given: Tree = {"name": optimizer} if isinstance(optimizer, str) else dict(optimizer or {})
    if "lr" in given:
        return float(given["lr"])
    if "name" in given:
        return float(Choice.of("optim", given["name"]).options["lr"])
    return float(TUNING["optim"]["lr"])


def _finished(run: RunFolder, tuning: TuningSpec, asked: Tree, launch: Launch) -> int | None:
    """Have a finished run in a folder. Returns the signal that interrupted it. Raises: UsageError where there is another one."""
    request = tuning.request(asked)
    if run.begun:
        made = run.read_config()
        if made.budget != request.budget or made.train.batch != int(asked["train"]["batch"]):
            raise UsageError(f"{run.path} is of another sweep: name another folder with --out")
        if run.read_summary().get("stopped") == "finished":
            return None
        return launch.resume(run.path).outcome.signal
    run.path.parent.mkdir(parents=True, exist_ok=True)
    return launch.begin(request, run.path).outcome.signal


def _with_setting(setting: RateAndBatch, budget: Budget) -> Tree:
    rates: Tree = {key: {"lr": setting.rate} for key in ("optim", "fallback")}
    return {"budget": budget.write(), "train": {"batch": setting.batch, "sample_tokens": 0}, **rates}


def _scaled(budget: Budget, share: float) -> Budget:
    return Budget(**{name: limit * share for name, limit in budget.limits.items()})


def _figure(summary: Any, name: str) -> float:
    """A figure of a run; infinite where there is none."""
    found = summary
    for key in FIGURES[name]:
        found = found.get(key, {})
    if isinstance(found, float):
        return found
    whole = summary.get("heldout_loss", math.inf)  # where no old text is judged, there is one figure
    return float(whole) if name == "new" else math.inf


def _told(tried: list[tuple[RateAndBatch, dict[str, Any]]], sweep: RateToBatch, folder: Path) -> dict[str, Any]:
    totals = Totals()
    for ledger in sorted(folder.glob("*/ledger.jsonl")):
        for line in read_ledger(ledger):
            totals = totals.plus(line)
    found: dict[str, Any] = {}
    for name in FIGURES:
        figures = [(setting, _figure(summary, name)) for setting, summary in tried]
        if any(value < math.inf for _, value in figures):
            found[name] = _as_json(sweep.found(figures))
    rows = [
        {
            "rate": setting.rate,
            "batch": setting.batch,
            "ratio": setting.ratio,
            **{name: value for name in FIGURES if (value := _figure(summary, name)) < math.inf},
        }
        for setting, summary in tried
    ]
    spent = {"seconds": totals.wall_clock, "flops": totals.flops, "tokens": totals.tokens}
    return {"tried": rows, "found": found, "spent": spent}


def _as_json(found: RatioFound) -> dict[str, Any]:
    best = {"rate": found.best.rate, "batch": found.best.batch, "ratio": found.best.ratio}
    return {**best, "edge": found.edge, "fitted_ratio": found.fitted}
