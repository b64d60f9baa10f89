"""Several runs one after the other, each on the model that the one before made, within one budget.

The pipeline of "A Technical Study into Small Reasoning Language Models" (arXiv:2506.13404): supervised tuning, distillation and
what else there is, in stages, each with a share of the budget, and the same problems asked after each.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval

from shoestring import atomic
from shoestring.base import open_model
from shoestring.base.answers import Asking, ask
from shoestring.budget.budget import Budget
from shoestring.budget.ledger import EVALUATION, Ledger, Totals, read_ledger
from shoestring.config import Choice, Pick, Tree, build, merge, read_toml, to_toml
from shoestring.data.places import absolute_path
from shoestring.errors import UsageError
from shoestring.json_files import read_json
from shoestring.launch.launch import Launch
from shoestring.launch.request import TrainingRequest
from shoestring.launch.tuning import methods_of_tuning, tuning_request
from shoestring.method import Count, Fraction
from shoestring.task.task import Task
from shoestring.train.run_folder import RunFolder
from shoestring.train.work_folder import Kind, held

log = logging.getLogger(__name__)

STAGES = Kind(begins_with="stages.toml")
BASE = "base"
"""What the model before the first stage is called where it is judged."""


@dataclass(frozen=True)
class StageConfig:
    """One run.

    name: of its folder. share: of the budget.
    method: as `shoestring tune --method` has it; '': a run as `shoestring train` has it.
    replay: as `shoestring tune --replay` has it.
    run: keys of the run's configuration, as in a recipe.
    """

    name: str
    share: Annotated[float, Interval(gt=0, le=1)]
    method: str = ""
    replay: Fraction = 0.0
    run: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StagesConfig:
    """All runs, in order.

    stage: the runs. budget: of all together. base: the place of the model that the first begins with; '': it trains a new one.
    old: the corpus that forgetting is judged on, in stages with a method; '': none.
    task: of which problems are asked before the first stage and after each; None: none. problems: how many. chat: as a user.
    Raises: UsageError where shares come to more than the budget, or names or methods are wrong.
    """

    stage: tuple[StageConfig, ...]
    budget: Budget
    base: str = ""
    old: str = ""
    task: Annotated[Choice, Pick("task", "task")] | None = None
    problems: Count = 100
    chat: bool = False

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stage]
        if not names:
            raise UsageError("there is no stage: give a [[stage]] with a name and a share")
        for name in names:
            if not name or name == BASE or not name.replace("-", "").replace("_", "").isalnum():
                raise UsageError(f"'{name}' cannot be a stage's name: it is a word of letters, digits, - and _")
            if names.count(name) > 1:
                raise UsageError(f"two stages are named '{name}'")
        total = sum(stage.share for stage in self.stage)
        if total > 1 + 1e-9:
            raise UsageError(f"the shares of the stages come to {total:g}, and the budget is 1")
        for stage in self.stage:
            if stage.method and stage.method not in methods_of_tuning():
                raise UsageError(f"stage '{stage.name}': there is no method '{stage.method}' of tuning")
        if not self.base and self.stage[0].method:
            raise UsageError(
                f"stage '{self.stage[0].name}' tunes a model: name it with base = PLACE, or leave method out"
            )

    @classmethod
    def read(cls, path: Path, budget: str | None = None) -> "StagesConfig":
        """Of a TOML file; budget: in place of its own. Raises: UsageError."""
        given = read_toml(path)
        if budget is not None:
            given = {**given, "budget": budget}
        if "budget" not in given:
            raise UsageError(f"{path} has no budget: give budget = '10m' there, or --budget 10m")
        return build(cls, given)


class StagesFolder:
    """FOLDER/stages.toml, NAME/ (the run of each stage), judged.json, ledger.jsonl (of judging), summary.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.judged, self.ledger = path / "stages.toml", path / "judged.json", path / "ledger.jsonl"

    @classmethod
    @contextmanager
    def create(cls, path: Path, config: StagesConfig) -> Iterator["StagesFolder"]:
        """A new one, which this process alone works in. Raises: UsageError where `path` holds something already."""
        with STAGES.created(path):
            folder = cls(path)
            atomic.write_text(folder.recipe, to_toml(_absolute(config)))
            yield folder

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator["StagesFolder"]:
        """One that was begun, which this process alone works in. Raises: UsageError."""
        if not STAGES.begun(path):
            raise UsageError(f"{path} holds no stages: it has no stages.toml")
        with held(path):
            yield cls(path)

    def read_config(self) -> StagesConfig:
        """As it was begun."""
        return build(StagesConfig, read_toml(self.recipe))

    def run(self, stage: StageConfig) -> RunFolder:
        """The folder of a stage's run."""
        return RunFolder(self.path / stage.name)

    def spent(self) -> Totals:
        """What all stages took, judging not among it."""
        totals = Totals()
        for stage in self.read_config().stage:
            path = self.run(stage).ledger
            for line in read_ledger(path) if path.exists() else ():
                totals = totals.plus(line)
        return totals


@dataclass(frozen=True)
class StagesEnded:
    """How it ended.

    signal: what interrupted it; None: nothing. summary: as in summary.json; empty before the end.
    """

    signal: int | None
    summary: dict[str, Any]


def run_stages(folder: StagesFolder, launch: Launch) -> StagesEnded:
    """Do what is not done yet: finished stages are left as they are, one that was stopped goes on from its newest checkpoint.

    What a stage leaves of its share is not given to the next: a run that was killed has the same shares as one that was not.
    Raises: UsageError, ShoestringError.
    """
    config = folder.read_config()
    place = config.base
    if place:
        _judge(folder, config, BASE, place)
    for stage in config.stage:
        run = folder.run(stage)
        if run.read_summary().get("stopped") != "finished":
            log.info(f"stage {stage.name}: {stage.share:.0%} of {config.budget}")
            ended = launch.resume(run.path) if run.begun else launch.begin(_request(config, stage, place), run.path)
            if ended.outcome.stopped != "finished":
                return StagesEnded(ended.outcome.signal, {})
        place = str(run.path.absolute())
        _judge(folder, config, stage.name, place)
    summary = _summary(folder, config)
    atomic.write_text(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")
    return StagesEnded(None, summary)


def _request(config: StagesConfig, stage: StageConfig, place: str) -> TrainingRequest:
    """What a stage's run is asked for. place: of the model that it begins with."""
    own = Budget(**{name: limit * stage.share for name, limit in config.budget.limits.items()})
    asked: Tree = merge(stage.run, {"budget": own.write()})
    try:
        if stage.method:
            return tuning_request(place, stage.method, asked, config.old, stage.replay)
        return TrainingRequest.of(merge({"model": {"base": place}}, asked) if place else asked)
    except UsageError as error:
        raise UsageError(f"stage '{stage.name}': {error}") from None


def _judge(folder: StagesFolder, config: StagesConfig, name: str, place: str) -> None:
    """Ask the task's problems, unless that was done."""
    known: list[Any] = read_json(folder.judged, list, "a list") or []
    if config.task is None or any(one["stage"] == name for one in known):
        return
    task: Task = config.task.build()
    ledger = Ledger(folder.ledger)
    try:
        with ledger.clock("evaluate"):
            opened = open_model(place)
            found = ask(opened, task, task.problems("test", 0, config.problems), Asking(chat=config.chat))
        ledger.charge(found.spent, EVALUATION)
        ledger.write("evaluate", stage=name)
    finally:
        ledger.close()
    accuracy = found.accuracy.estimate
    row = {"stage": name, "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
    atomic.write_text(folder.judged, json.dumps([*known, row], indent=1) + "\n")
    log.info(f"{name}: {accuracy.value:.1%} of {config.problems} problems of {config.task.name}")


def _summary(folder: StagesFolder, config: StagesConfig) -> dict[str, Any]:
    judged: dict[str, Mapping[str, Any]] = {one["stage"]: one for one in read_json(folder.judged, list, "a list") or []}
    rows = []
    for name in [BASE] * bool(config.base) + [stage.name for stage in config.stage]:
        found = RunFolder(folder.path / name).read_summary() if name != BASE else {}
        kept = ("heldout_loss", "tuning", "steps", "tokens", "flops", "seconds", "peak_memory")
        row = {"stage": name, **{key: found[key] for key in kept if key in found}}
        rows.append(row | {key: judged[name][key] for key in ("accuracy", "low", "high") if name in judged})
    totals = folder.spent()
    judging = Totals()
    for line in read_ledger(folder.ledger) if folder.ledger.exists() else ():
        judging = judging.plus(line)
    return {
        "budget": config.budget.write(),
        "seconds": totals.wall_clock,
        "flops": totals.flops,
        "tokens": totals.tokens,
        "judging_seconds": judging.wall_clock,
        "stages": rows,
    }


def _absolute(config: StagesConfig) -> StagesConfig:
    """With the files that it names as absolute paths: it is gone on with from anywhere."""

    def place(text: Any) -> Any:
        return absolute_path(text) if isinstance(text, str) and text and Path(text).expanduser().exists() else text

    def within(run: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: within(value)
            if isinstance(value, Mapping)
            else [within(one) if isinstance(one, Mapping) else one for one in value]
            if isinstance(value, list)
            else place(value)
            if key in ("corpus", "teacher", "documents", "tokenizer")
            else value
            for key, value in run.items()
        }

    stages = tuple(replace(stage, run=within(stage.run)) for stage in config.stage)
    return replace(config, base=place(config.base), old=place(config.old), stage=stages)
