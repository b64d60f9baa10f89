"""Recipes tried on a model: each quantised, written, opened as it will be used, and measured. What is done survives a kill."""

import copy
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shoestring.base.likelihood import TextLikelihood
from shoestring.base.opened import Opened
from shoestring.base.text import Text
from shoestring.budget.ledger import Ledger
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.quantise.conduct import QuantiseOutcome, Wanted, keep, measure, measure_kept, quantise_model
from shoestring.quantise.loss_target import RecipeChoice
from shoestring.quantise.progress import QuantiseProgress
from shoestring.quantise.target import BitTarget

log = logging.getLogger(__name__)


@dataclass
class LossTrials:
    """The trials of one model, as `RecipeTrials`.

    opened: what is quantised: its tokenizer, and where it is from. model: plain; a copy of it is made for each trial, so that there
    are two of them.
    wanted: what is asked for beside the format, its bits and the solver; its seconds are of all trials together.
    calibration, measured: text to calibrate on, and to measure on.
    work: the folder in which trials are kept.
    """

    opened: Opened
    model: LanguageModule
    wanted: Wanted
    sizes: Sequence[Sequence[RecipeChoice]]
    limit: float
    calibration: Sequence[Batch]
    measured: Text
    ledger: Ledger
    work: Path
    clock: Callable[[], float] = time.monotonic
    tried: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = self.clock()
        texts = [len(one.inputs.values) for one in self.calibration], self.measured.said
        about = json.dumps([self.opened.about.digest, self.wanted.told(), *texts], sort_keys=True)
        self._kept = QuantiseProgress(self.work, about)
        self.before: TextLikelihood = measure(self.model, self.opened, self.measured, self.ledger, "before")

    def over(self) -> bool:
        """Whether the budget is spent."""
        return self.wanted.seconds is not None and self.clock() - self._began >= self.wanted.seconds

    def folder(self, recipe: RecipeChoice) -> Path:
        """Where its model is kept."""
        return self.work / recipe.said.replace(" ", "-")

    def rise(self, recipe: RecipeChoice) -> float:
        """As `RecipeTrials.rise`. The model as it is opened from its folder is measured: packed where a kernel multiplies it so."""
        name = f"trial-{self.folder(recipe).name}"
        known = self._kept.read(name)
        if known is not None and (known[0]["rise"] > self.limit or self.folder(recipe).is_dir()):
            return self._told(recipe, known[0])
        out = self.folder(recipe)
        shutil.rmtree(out, ignore_errors=True)
        after, made = self._trial(recipe, out)
        rise = after.nats_per_token.value - self.before.nats_per_token.value
        told = {"rise": rise, "bytes": made.bytes_after, "seconds": made.seconds, "rounded": len(made.done.rounded)}
        if rise > self.limit:
            shutil.rmtree(out)
        if not made.done.rounded:  # with more time, another go would be better
            self._kept.write(name, told, {})
        return self._told(recipe, told)

    def _trial(self, recipe: RecipeChoice, out: Path) -> tuple[TextLikelihood, QuantiseOutcome]:
        left = None if self.wanted.seconds is None else max(self.wanted.seconds - (self.clock() - self._began), 0.0)
        wanted = replace(
            self.wanted,
            target=BitTarget("bits", recipe.bits),
            format=recipe.format,
            solver=recipe.solver,
            seconds=left,
        )
        model, steps = copy.deepcopy(self.model), out.with_name(f"{out.name}.unfinished")
        made = quantise_model(self.opened, model, wanted, self.calibration, None, self.ledger, steps)
        keep(self.opened, model, made, wanted, out, self.ledger)
        del model
        after, _ = measure_kept(out, self.measured, self.ledger)
        shutil.rmtree(steps, ignore_errors=True)
        return after, made

    def _told(self, recipe: RecipeChoice, told: dict[str, Any]) -> float:
        rise = float(told["rise"])
        self.tried.append({"recipe": recipe.said, "taken": rise <= self.limit, **told})
        log.info(f"{recipe.said}: {told['bytes']:,} bytes, {rise:+.4f} nats a token")
        return rise
