"""A configuration made into parts: model, objective, optimiser, schedule, batches, evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from shoestring.base import open_model
from shoestring.contract.cost import Shape
from shoestring.contract.edit import Decision, Evidence, Stepped
from shoestring.contract.model import LanguageModel, LanguageModule
from shoestring.contract.objective import HeldoutJudge, Objective, Taught
from shoestring.data.dataset import Dataset
from shoestring.data.intervention import Intervened, Intervention, read_texts
from shoestring.data.length import Shaped
from shoestring.data.mixed import Mixed
from shoestring.data.mixture import Domain
from shoestring.data.selection import Selection
from shoestring.data.store import TokenStore
from shoestring.data.stream import stream_of
from shoestring.data.windows import BatchSource, Windows
from shoestring.errors import UsageError
from shoestring.optim.composite import Composite
from shoestring.optim.partition import members, partition
from shoestring.parallel.activation_checkpointing import checkpoint_layers
from shoestring.schedule.batch_rule.rule import BatchRule, scale_to_batch
from shoestring.schedule.transfer.rule import Rules, Scale, require_optimizer, scale_groups, scale_weights
from shoestring.schedule.warmup import with_warmup
from shoestring.train.applied_schedules import AppliedSchedules
from shoestring.train.base import build_model, teacher_of
from shoestring.train.config import RunConfig
from shoestring.train.edits import Applied, Decide, apply_edits, decide_here, describe, join_schedule, needs
from shoestring.train.evaluate import Evaluator, heldout_windows
from shoestring.train.execution import cross_entropy, prepare_blocks
from shoestring.train.frozen_weights import narrow_frozen
from shoestring.train.noise_scale import NoiseScale
from shoestring.train.step import Stepper
from shoestring.train.worker_batches import WorkerBatches

CALIBRATION = 8192
"""Tokens of training text that edits may look at, at most."""


@dataclass(frozen=True)
class Parts:
    """What this process trains a run with.

    steppers: one for each worker that this process has.
    sequences: of a step, of all workers, by progress.
    milestones: shares of the budget at which the schedule has something worth keeping.
    claims: what the edits did and from when they take effect, and who optimises which parameters.
    applied: the edits of the model, with what each decided.
    """

    steppers: tuple[Stepper, ...]
    schedule: AppliedSchedules
    source: BatchSource
    evaluator: Evaluator
    sequences: Callable[[float], int]
    milestones: tuple[float, ...]
    claims: str
    applied: tuple[Applied, ...] = ()

    @property
    def stepper(self) -> Stepper:
        return self.steppers[0]

    @property
    def model(self) -> LanguageModule:
        return self.stepper.model

    @property
    def optimizer(self) -> Composite:
        return self.stepper.optimizer


def rules_for(config: RunConfig) -> Rules:
    """What the configuration's rule of transfer makes of its model's size. Raises: UsageError where the rule is for another
    optimiser."""
    model, transfer = config.model, config.transfer.build()
    require_optimizer(transfer, config.optim.name)
    return transfer(Scale(width=model.width, depth=model.layers, tokens=config.budget.tokens or 0.0))


def with_transfer(config: RunConfig) -> RunConfig:
    """The configuration, its model scaled as the rule of transfer says; the rest of the rule is for `assemble`."""
    if config.transfer.name == "standard":
        return config
    rules = rules_for(config)
    return replace(config, model=replace(config.model, input_scale=rules.input, output_scale=rules.output))


def steps_of(config: RunConfig) -> Callable[[float], int]:
    """Sequences of a step as a function of progress: whole micro-batches, so that no shape is new to the compiler.

    Raises: UsageError where a batch that grows is compiled and has no micro-batch.
    """
    batch, ramp = config.train.batch, config.batch_size.build()
    if config.batch_size.name == "constant":
        return lambda progress: batch
    if config.train.micro_batch is None and config.execution.compile != "none":
        raise UsageError(
            f"batch_size = {config.batch_size.name}: compiled blocks take one shape, so set train.micro_batch, "
            "the sequences at once, of which a growing batch takes ever more; or execution.compile none"
        )
    unit = (config.train.micro_batch or 1) * config.parts
    return lambda progress: max(1, round(ramp(progress) * batch / unit)) * unit


def assemble(
    config: RunConfig,
    dataset: Dataset,
    worker: int | None = None,
    decisions: Sequence[Decision] | None = None,
    decide: Decide = decide_here,
) -> Parts:
    """Build everything a resolved configuration (no 'auto' left) describes, from its seed.

    worker: which of config.workers this process is; None: all of them.
    decisions: of the run's edits, where they were made before; None: each edit decides now.
    decide: has it do so.
    """
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    device = config.execution.device
    own = config.workers if worker is None else 1
    selection = selection_of(config, dataset)
    more = 1 if selection is None else selection.more
    source = training_source(config, dataset, worker if own < config.workers else None, more)
    evidence = _evidence(config, source)
    claims, steppers, applied = "", [], list[Applied]()
    for _ in range(own):
        stepper, applied, claims = _stepper(
            config, evidence, decisions, selection, dataset.tokenizer.fingerprint, decide
        )
        steppers.append(stepper)
        decisions = [one.decision for one in applied]
    heldout, evaluated = heldout_windows(config, dataset)
    judge = steppers[0].objective if isinstance(steppers[0].objective, HeldoutJudge) else None
    evaluator = Evaluator(
        heldout,
        dataset.tokenizer.byte_lengths,
        sequences=evaluated,
        rows=_rows(config),
        device=device,
        precision=config.execution.precision,
        domains=[part.name for part in dataset.domains],
        judge=judge,
    )
    if config.parallel.processes > 1:
        from shoestring.train.joint_evaluation import JointEvaluator

        evaluator = JointEvaluator(evaluator, config.parallel)
    model, drawn = steppers[0].model, steps_of(config)
    schedule, switches, said = join_schedule(config.schedule.build(), applied, model, planned_tokens(config, model))
    pairs = [(stepper.model, stepper.optimizer) for stepper in steppers]
    return Parts(
        steppers=tuple(steppers),
        schedule=AppliedSchedules(with_warmup(schedule, config.train.warmup), schedule, switches, pairs),
        source=source,
        evaluator=evaluator,
        sequences=drawn if selection is None else lambda progress: drawn(progress) * more,
        milestones=tuple(getattr(schedule, "milestones", ())),
        claims="\n".join(line for line in (claims, said, f"held-out figures: {judge.figure}" if judge else "") if line),
        applied=tuple(applied),
    )


def training_source(config: RunConfig, dataset: Dataset, worker: int | None, more: int = 1) -> BatchSource:
    """The batches of a run. worker: whose part of them; None: all of them. more: times as many rows are drawn as trained on."""
    source = _planted(config, dataset, _whole_rows(config, dataset, worker))
    if config.data.length is None:
        return source
    return Shaped(stream_of(source), config.data.length.build(config.model.context), config.train.batch * more)


def _planted(config: RunConfig, dataset: Dataset, source: BatchSource) -> BatchSource:
    """The source with the run's experiments on it. Raises: UsageError where their texts cannot be read."""
    experiments, end = [], dataset.tokenizer.end
    for choice in config.data.interventions:
        made: Intervention = choice.build()
        texts = [np.array([*dataset.tokenizer.encode(text), end]) for text in read_texts(made.file)]
        experiments.append((f"{choice.name} of {made.file}", made, texts))
    return Intervened(stream_of(source), experiments, config.seed) if experiments else source


def selection_of(config: RunConfig, dataset: Dataset) -> Selection | None:
    """What chooses the rows that are trained on. Raises: UsageError where a model that it asks reads other tokens."""

    def opened(place: str) -> LanguageModel:
        found = open_model(place)
        own = None if found.tokenizer is None else found.tokenizer.fingerprint
        if own != dataset.tokenizer.fingerprint:
            raise UsageError(
                f"{place} has another tokenizer than this run: train both with --data.tokenizer bytes, or the same file"
            )
        model = found.model
        if isinstance(model, nn.Module):
            model.to(config.execution.device)
        return model

    if config.data.selection is None:
        return None
    made: Selection = config.data.selection.build(opened)
    return made


def _whole_rows(config: RunConfig, dataset: Dataset, worker: int | None) -> BatchSource:
    context, seed, data = config.model.context, config.seed, config.data
    workers = 1 if worker is None else config.workers

    def rows_of(store: TokenStore) -> BatchSource:
        if data.rows is None:
            return Windows(store, context, seed, data.packing)
        made: BatchSource = data.rows.build(store, context, seed)
        return made

    if not dataset.domains:
        source = rows_of(dataset.train)
        return source if worker is None else WorkerBatches(source, worker, workers)
    windows = [rows_of(part.train) for part in dataset.domains]
    mixture = config.data.mixture_of([Domain(part.name, len(part.train)) for part in dataset.domains])
    names = [part.name for part in dataset.domains]
    return Mixed(names, windows, mixture, seed, worker=worker or 0, workers=workers)


def planned_tokens(config: RunConfig, model: LanguageModel) -> float:
    """The tokens that the budget allows, as far as it says so; 0: it does not."""
    budget, context = config.budget, config.model.context
    if budget.tokens or not budget.flops:
        return budget.tokens or 0.0
    return budget.flops * context / model.cost(Shape(1, context, backward=True)).flops


def _evidence(config: RunConfig, source: BatchSource) -> Evidence:
    """What the run's edits may look at: some of the text that it trains on."""
    if "text" not in needs(config.edits):
        return Evidence(config.seed)
    rows = max(1, CALIBRATION // config.model.context)
    return Evidence(config.seed, tuple(source.batch(0, rows).to(config.execution.device).split(4)))


def planned_flops(stepper: Stepper, sequences: int, context: int) -> int:
    """What a step of so many whole sequences will take, before it is taken."""
    return stepper.model.cost(Shape(sequences, context, backward=True)).flops + stepper.optimizer.step_flops()


def _rows(config: RunConfig) -> int:
    """Sequences at once."""
    return config.train.micro_batch or config.train.batch // config.parts


def _objective(config: RunConfig, tokens: str | None) -> Objective:
    """What is minimised, with its teachers where it has some. tokens: the fingerprint of the run's tokenizer."""
    made: Objective = config.objective.build(cross_entropy(config.execution))
    if isinstance(made, Taught):
        made.learn_from(*(teacher_of(config, place, tokens) for place in made.teachers))
    return made


def _stepper(
    config: RunConfig,
    evidence: Evidence,
    decisions: Sequence[Decision] | None,
    selection: Selection | None,
    tokens: str | None = None,
    decide: Decide = decide_here,
) -> tuple[Stepper, list[Applied], str]:
    """(a worker's model and all that trains it, the edits of the model, these and who optimises which parameters in lines): the
    same for each worker."""
    torch.manual_seed(config.seed)
    made = build_model(config.model).to(config.execution.device)
    model, applied = apply_edits(made, config.edits, evidence, decisions, decide)
    if not (model.about.causal or getattr(config.objective.card.target, "both_ways", False)):
        raise UsageError(
            f"objective = {config.objective.name} is for models that see what came before, and this one sees both ways: give "
            "--objective masked_diffusion, or --model.causal true"
        )
    edits = describe(model, applied)
    claimed = partition(model, config.optim, config.fallback)
    rules = rules_for(config)
    scale_weights(rules, ((member.role, member.parameter) for member in members(model)))
    layout, device = config.parallel, config.execution.device
    if config.model.base and config.execution.precision == "bfloat16" and layout.processes == 1:
        narrow_frozen(model, torch.bfloat16)
    prepare_blocks(model, config.execution)
    options: dict[str, Any] = {
        "device": device,
        "precision": config.execution.precision,
        "micro_batch": _rows(config),
        "context": config.model.context if config.data.length is not None else None,
        "selection": selection,
        "clip": config.train.gradient_clip,
        "seed": config.seed,
        "noise_scale": NoiseScale() if config.train.noise_scale_every else None,
        "noise_scale_every": max(config.train.noise_scale_every, 1),
        "stepped": [one.edit for one in applied if isinstance(one.edit, Stepped)],
        "checkpointed": layout.checkpointing == "layers",
    }
    if layout.processes > 1:
        from shoestring.train.sharded_step import sharded_stepper  # torch's engines, which take a second to import

        stepper: Stepper
        stepper, divided = sharded_stepper(model, layout, claimed, _objective(config, tokens), **options)
    else:
        if layout.checkpointing != "none":
            checkpoint_layers(model.anatomy(), "inputs" if layout.checkpointing == "layers" else "products")
        stepper, divided = Stepper(model, _objective(config, tokens), claimed.build(), **options), ""
    scale_groups(rules, stepper.optimizer.param_groups)
    rule: BatchRule = config.batch_rule.build()
    rescaled = scale_to_batch(rule, stepper.optimizer.param_groups, config.train.batch / config.workers)
    ruled = [f"{config.batch_rule.name}: {line}" for line in rescaled]
    return stepper, applied, "\n".join(line for line in (edits, claimed.describe(), divided, *ruled) if line)
