"""What a run is asked for, laid over the plan for its budget."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Ledger, peak_memory
from shoestring.budget.machine import Machine, cache_folder
from shoestring.budget.units import parse_memory
from shoestring.config import Tree, as_flag, build, merge, overrides, read_toml, tree
from shoestring.data.config import DataConfig
from shoestring.data.corpus import open_corpus
from shoestring.data.dataset import Dataset, require
from shoestring.data.places import absolute_data
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import is_number
from shoestring.model.config import ModelConfig
from shoestring.parallel.layout import ParallelLayout
from shoestring.plan.choosing import UseLimit
from shoestring.plan.decision import PlanDecision
from shoestring.plan.learned import learned_for
from shoestring.plan.means import Exchanged
from shoestring.plan.memory import learned_runs
from shoestring.plan.pace import MeasuredPaces, Paces
from shoestring.plan.planner import Plan, paces_for, plan
from shoestring.plan.runs_table import text_key
from shoestring.plan.sizes import flops_per_token, parameters
from shoestring.train.base import with_base
from shoestring.train.config import RunConfig
from shoestring.train.execution import require_device
from shoestring.train.run_folder import RunFolder
from shoestring.train.sections import PIPELINE_EXECUTION
from shoestring.train.trial import allowed, try_out

DEFAULT_BUDGET = "2m"
TELLS_PACE = ("model", "optim", "fallback", "edits", "objective", "execution", "transfer", "batch_rule")
"""Sections of a configuration that a pace hangs on; a token takes about as long in a batch of another size."""

TRIALS = 3
"""Shapes that are tried out at most for one plan."""


@dataclass(frozen=True)
class TrainingRequest:
    """What a run is asked for; what it leaves open is planned. `TrainingRequest.of` and `TrainingRequest.read` check it.

    asked: plain values, as in a recipe.
    budget: what the run may spend.
    critical_batch: tokens, as measured in an earlier run; None: not known.
    workers, transport, parallel: as in the configuration.
    planned: what was decided before, and is among what is asked for.
    exchanged: what the workers send each other; None where they do not.
    served: tokens that the model is to read and write in its life, which the budget pays for too.
    learns: whether the plan heeds what ladders of runs have taught; False: it is made by rule.
    fits: bytes that the model may take in use, as `quantise.footprint` counts them; None: what it likes.
    """

    asked: Tree
    budget: Budget
    critical_batch: float | None = None
    workers: int = 1
    transport: str = "distributed"
    planned: tuple[PlanDecision, ...] = ()
    exchanged: Exchanged | None = None
    served: float = 0.0
    learns: bool = True
    fits: float | None = None
    parallel: ParallelLayout = field(default_factory=ParallelLayout)

    @classmethod
    def of(
        cls,
        asked: Tree,
        critical_batch: float | None = None,
        *,
        processes: int | None = None,
        planned: tuple[PlanDecision, ...] = (),
    ) -> "TrainingRequest":
        """Check what can be checked before any work: names of keys, values, budget.

        asked: plain values, as in a recipe: {"budget": "2m", "model": {"width": 256}}.
        critical_batch: tokens; the plan heeds it.
        processes: how many were started for the run, each to be a worker; None where the run starts its own.
        planned: what of `asked` was decided by a plan, to be shown with its reasons.
        Raises: UsageError.
        """
        asked = dict(asked)
        divided = isinstance(asked.get("parallel"), Mapping)
        if processes is not None and not divided:
            asked.setdefault("workers", processes)
        asked.setdefault("budget", DEFAULT_BUDGET)
        if asked.get("transport") == "pipeline":
            asked = merge({"model": {"tied": False}, "execution": PIPELINE_EXECUTION}, asked)
        # the batch is for the plan to choose: here it must not stand in the way of any number of workers
        parts = build(ParallelLayout, asked["parallel"], as_flag).parts if divided else 1
        workers = asked.get("workers", 1)
        batch = workers * parts if isinstance(workers, int) else parts
        config = build(RunConfig, merge({"model": {}, "train": {"batch": batch}}, asked), as_flag)
        require_device(config.execution)
        if config.old.corpus:
            open_corpus(config.old.corpus)  # refuses what is not there
        if config.model.base:
            asked = with_base(asked, config.train.base_optimizer)
        exchanged = _exchanged(config) if config.workers > 1 and config.transport != "pipeline" else None
        made = cls(asked, config.budget, critical_batch, config.workers, config.transport, planned, exchanged)
        return replace(made, parallel=config.parallel)

    @classmethod
    def read(
        cls,
        recipe: Path | None,
        words: Sequence[str],
        noise_scale_of: Path | None = None,
        *,
        processes: int | None = None,
    ) -> "TrainingRequest":
        """As `of`, from a recipe and flags.

        recipe: a TOML file; None: none.
        words: `--key=value` flags, laid over the recipe.
        noise_scale_of: an earlier run whose critical batch the plan heeds.
        Raises: UsageError.
        """
        asked = merge(read_toml(recipe) if recipe else {}, overrides(words))
        request = cls.of(asked, processes=processes)
        return replace(request, critical_batch=critical_batch(noise_scale_of)) if noise_scale_of else request

    @property
    def at_once(self) -> int:
        """Workers that compute at the same time, each with the cores that one has."""
        return 1 if self.transport == "local" else self.processes

    @property
    def processes(self) -> int:
        """Processes that train the run, where each worker has its own."""
        return self.workers * self.parallel.processes

    def data(self) -> DataConfig:
        return build(DataConfig, self.asked.get("data", {}))


SAMPLE = (512, 512)
"""The matrix whose payload tells how many bits of a value a codec sends."""


def _exchanged(config: RunConfig) -> Exchanged | None:
    loop: Any = config.sync.build()
    codec = getattr(loop, "codec", None)
    if codec is None:
        return None
    bits = 8 * codec.build().payload_bytes(SAMPLE) / (SAMPLE[0] * SAMPLE[1])
    return Exchanged(loop.every, bits, config.workers)


def critical_batch(run: Path) -> float:
    """The critical batch in tokens that a finished run measured. Raises: UsageError where it did not."""
    summary = RunFolder.open(run).read_summary()
    found = summary.get("critical_batch")
    if not found:
        raise UsageError(
            f"{run} has measured no critical batch: train with --train.noise_scale_every 5 and a --train.micro_batch below "
            "the batch, for long enough"
        )
    if not is_number(found):
        raise ShoestringError(f"{run / 'summary.json'} is damaged: 'critical_batch' is not a number")
    return float(found)


def prepared(request: TrainingRequest, clock: AbstractContextManager[None]) -> Dataset:
    """The request's corpus, its time on the clock."""
    with clock:
        dataset = prepare(request.data(), cache_folder())
        require(dataset, int(request.asked.get("model", {}).get("context", 1)))
    return dataset


def planned(
    request: TrainingRequest,
    machine: Machine,
    dataset: Dataset,
    seconds_spent: float,
    paces: Paces | None = None,
    shape: Tree | None = None,
) -> tuple[Plan, RunConfig]:
    """The plan for what the request leaves open, and the complete configuration.

    paces: what was measured.
    shape: of the model, where it is settled although the request leaves it open.
    """
    memory = request.asked.get("memory")
    made = plan(
        request.budget,
        machine,
        workers=request.workers * request.parallel.parts,
        at_once=request.at_once,
        corpus_tokens=len(dataset.train),
        vocabulary=dataset.tokenizer.vocabulary,
        fixed=merge({"model": shape or {}}, request.asked),
        memory=parse_memory(memory) if memory else None,
        seconds_spent=seconds_spent,
        critical_batch=request.critical_batch,
        paces=paces,
        heldout_tokens=len(dataset.heldout),
        held=peak_memory(),
        exchanged=request.exchanged,
        served=request.served,
        learned=learned_for(learned_runs(), text_of_request(request, dataset)) if request.learns else None,
        use=None if request.fits is None else _use_limit(request.fits),
    )
    config = build(RunConfig, merge(made.tree(), request.asked), as_flag)
    require(dataset, config.model.context)
    return made, config


def _use_limit(most: float) -> UseLimit:
    from shoestring.quantise.footprint import footprint  # for plans that ask for it alone

    def takes(model: ModelConfig) -> float:
        count = parameters(model)  # a byte each at least: what is far too large is not built
        return count if count > most else footprint(model).total

    return UseLimit(most, takes)


def text_of_request(request: TrainingRequest, dataset: Dataset) -> str:
    """What makes losses comparable with those of this request, as the store of learned runs names it."""
    data = tree(absolute_data(request.data()))
    return text_key({"data": data, "model": {"vocabulary": dataset.tokenizer.vocabulary}})


def tried(
    request: TrainingRequest, machine: Machine, dataset: Dataset, ledger: Ledger, kept: MeasuredPaces | None = None
) -> tuple[Plan, RunConfig]:
    """As `planned`, by the pace of a few steps of the planned shape where the run is long enough for that: with another pace
    another shape may be the one to plan, which is tried then too.

    kept: paces of earlier plans, which are taken in place of trying again, and added to.
    """
    paces = paces_for(machine, request.budget, request.asked, request.at_once)
    for _ in range(TRIALS):
        made, config = planned(request, machine, dataset, ledger.totals.wall_clock, paces)
        if request.processes > 1 or request.transport == "pipeline" or paces.knows(config.model):
            return made, config
        left = made.seconds if request.budget.seconds is None else request.budget.seconds - ledger.totals.wall_clock
        used = ledger.totals.seconds.get("measure", 0.0)
        seconds = allowed(request.budget.seconds, made.seconds, left, used)
        key = MeasuredPaces.key({name: value for name, value in tree(config).items() if name in TELLS_PACE})
        pace = kept.get(key) if kept else None
        if pace is None:
            pace = try_out(config, dataset, machine, ledger, seconds, made.seconds)
            if pace is None:
                return made, config
            if kept:
                kept.put(key, pace)
        paces.add(config.model, flops_per_token(config.model), pace)
    # between shapes that call for each other, the last one tried out it is
    shape = {key: getattr(config.model, key) for key in ("layers", "width", "heads", "context")}
    made, config = planned(request, machine, dataset, ledger.totals.wall_clock, paces, shape)
    first, *others = made.decisions
    return replace(
        made, decisions=(replace(first, reason=f"{first.reason}, the last of {TRIALS} tried out"), *others)
    ), config


def _given(asked: Mapping[str, Any], key: str) -> bool:
    branch: Any = asked
    for part in key.split("."):
        if not isinstance(branch, Mapping) or part not in branch:
            return False
        branch = branch[part]
    return True


def decisions(request: TrainingRequest, made: Plan) -> list[dict[str, Any]]:
    """The plan's decisions for the run's folder, those the user made marked as such."""
    open_still = [decision for decision in made.decisions if not _given(request.asked, decision.key)]
    rows = [asdict(decision) for decision in (*request.planned, *open_still)]
    return json.loads(json.dumps(rows))
