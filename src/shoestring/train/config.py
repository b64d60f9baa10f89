"""The complete configuration of a run: what `config.toml` holds and what rebuilds the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval

from shoestring.budget.budget import Budget
from shoestring.budget.units import parse_memory
from shoestring.config import Choice, Pick, PickList
from shoestring.contract.edit import divides
from shoestring.data.config import DataConfig
from shoestring.errors import UsageError
from shoestring.method import Seed
from shoestring.model.config import ModelConfig
from shoestring.parallel.layout import ParallelLayout
from shoestring.schedule.batch_rule.rule import require_optimizer
from shoestring.train import former
from shoestring.train.old_config import OldConfig
from shoestring.train.sections import PIPELINE_EXECUTION, ElasticConfig, ExecutionConfig, PipelineConfig, TrainConfig

OBJECTIVE = Pick("objective", default="next_token")
OPTIM = Pick("optim", default="muon_hypersphere")
FALLBACK = Pick("optim", default="adamw")
SCHEDULE = Pick("schedule", default="wsd")
BATCH_SIZE = Pick("schedule", "batch", default="constant")
BATCH_RULE = Pick("schedule", "batch rule", default="none")
TRANSFER = Pick("schedule", "transfer", default="standard")
EDITS = PickList("edit", ("lowbit", "surgery", "tune", "quantise"))
SYNC = Pick("sync", "outer loop", default="none")


@dataclass(frozen=True)
class RunConfig:
    """A run.

    budget: what it may spend.
    memory: the most memory it may take (planning refuses what does not fit).
    seed: of all that is drawn at random: first weights, the order of the data.
    data: what is read.
    model: what is trained.
    objective: what is minimised.
    schedule: the factor on every learning rate, as the budget is spent.
    train: how the loop runs.
    execution: how the arithmetic is carried out.

    optim: the optimiser.
    fallback: the optimiser of the parameters that `optim` does not accept.
    batch_size: the share of train.batch that a step takes, as the budget is spent.
    batch_rule: how learning rates and betas follow from those that suit another batch; its batch is what one worker's
    step takes, train.batch over the workers.
    transfer: how learning rates and first weights follow from those that suit another size.

    edits: changes of the model, in order: layers that go, adapters, a number format to train for (`contract.edit`).

    workers: how many train the model, each on an equal part of every batch; the budget is that of all together, save
    for seconds, which pass for all at once.
    sync: how and when they exchange what they learnt.
    transport: 'distributed' is a process for each; 'local' has all of them in one process, in lock-step, for study;
    'torchft' is a process for each, and they may die, freeze, come late and come back: `workers` is then the number
    planned for, each of which takes its part of train.batch, however many there are; 'pipeline' cuts the model into
    stages, a process for each, any of which may die.
    parallel: how one worker is several processes, which train one model together; several such workers are islands, which
    exchange as `sync` says.
    old: text that the model could do before, judged beside what is held out of the new.
    elastic: when a worker that comes and goes is given up.
    pipeline: how the model is cut.
    """

    FORMER: ClassVar[Mapping[str, str]] = former.SECTIONS

    budget: Budget
    model: ModelConfig
    seed: Seed = 0
    memory: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    objective: Annotated[Choice, OBJECTIVE] = field(default_factory=OBJECTIVE.choice)
    optim: Annotated[Choice, OPTIM] = field(default_factory=OPTIM.choice)
    fallback: Annotated[Choice, FALLBACK] = field(default_factory=FALLBACK.choice)
    schedule: Annotated[Choice, SCHEDULE] = field(default_factory=SCHEDULE.choice)
    batch_size: Annotated[Choice, BATCH_SIZE] = field(default_factory=BATCH_SIZE.choice)
    batch_rule: Annotated[Choice, BATCH_RULE] = field(default_factory=BATCH_RULE.choice)
    transfer: Annotated[Choice, TRANSFER] = field(default_factory=TRANSFER.choice)
    edits: Annotated[tuple[Choice, ...], EDITS] = ()
    workers: Annotated[int, Interval(ge=1, le=1024)] = 1
    sync: Annotated[Choice, SYNC] = field(default_factory=SYNC.choice)
    transport: Literal["distributed", "local", "torchft", "pipeline"] = "distributed"
    parallel: ParallelLayout = field(default_factory=ParallelLayout)
    old: OldConfig = field(default_factory=OldConfig)
    elastic: ElasticConfig = field(default_factory=ElasticConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        if self.memory is not None:
            try:
                parse_memory(self.memory)
            except UsageError as error:
                raise UsageError(f"memory: {error}") from None
        if self.train.base_optimizer and not self.model.base:
            raise ValueError("train.base_optimizer is of the run to begin from: name it with model.base")
        for section in ("schedule", "batch_size", "transfer", "sync"):
            getattr(self, section).build()  # options that do not go together are refused here, before any work
        require_optimizer(self.batch_rule.build(), self.batch_rule.name, self.optim.name)
        for edit in self.edits:
            edit.build()
        if self.model.packed and not (self.model.base and any(edit.engine == "tune" for edit in self.edits)):
            raise ValueError(
                "model.packed keeps the matrices of a base as they are, which then learn nothing: give model.base and adapters, "
                "as --edits lora"
            )
        if self.data.source:
            self._check_sources()
        if self.data.rows or self.data.length or self.data.selection:
            self._check_rows()
        if self.data.interventions:
            self._check_interventions()
        if self.transport == "pipeline":
            self._check_pipeline()
        if self.sync.name != "none":
            self._check_inner()
        if self.workers > 1:
            self._check_workers()
        if self.transport == "torchft":
            self._check_elastic()
        self._check_parallel()

    @property
    def processes(self) -> int:
        """Processes that train the run, where each worker has its own."""
        return self.workers * self.parallel.processes

    @property
    def parts(self) -> int:
        """Into how many parts a batch is divided."""
        return self.workers * self.parallel.parts

    def _check_parallel(self) -> None:
        """Refuse what several processes of one model have not got, before any work."""
        layout, train, data = self.parallel, self.train, self.data
        if layout.checkpointing != "none" and self.execution.compile == "blocks":
            raise ValueError("parallel.checkpointing keeps blocks uncompiled: give execution.compile = none")
        if layout.precision == "bfloat16" and layout.fsdp == 1:
            raise ValueError(
                "parallel.precision = bfloat16 is of weights that fsdp gathers: give parallel.fsdp, or leave it out"
            )
        if layout.precision == "bfloat16" and self.execution.precision == "float32":
            raise ValueError(
                "parallel.precision = bfloat16 gathers weights for products in bfloat16: give execution.precision = bfloat16"
            )
        if layout.processes == 1:
            return
        others = {"data.rows": data.rows, "data.selection": data.selection}
        alone = [edit.name for edit in self.edits if not divides(edit.build())]
        refused = {
            f"sync = {self.sync.name}: one worker of several processes exchanges with nobody: give --sync none, or --workers 2": (
                self.workers == 1 and self.sync.name != "none"
            ),
            f"transport = {self.transport}: give --transport distributed": self.transport != "distributed",
            f"the edit {', '.join(alone)} looks at a whole batch or whole weights while training: leave it out": bool(
                alone
            ),
            "adapters and number formats look at whole matrices: set parallel.tensor and parallel.expert to 1": (
                layout.tensor * layout.expert > 1 and any(edit.engine in ("tune", "lowbit") for edit in self.edits)
            ),
            "train.noise_scale_every is not measured with parallel.tensor, context or expert: set it to 0": (
                layout.tensor * layout.context * layout.expert > 1 and bool(train.noise_scale_every)
            ),
            "execution.compile = blocks has not been tried with it: give none": self.execution.compile == "blocks",
            f"objective = {self.objective.name}: parallel.context predicts next tokens: give next_token": layout.context
            > 1
            and self.objective.name != "next_token",
            f"parallel.context = {layout.context} divides rows into {2 * layout.context} equal parts, which "
            f"model.context = {self.model.context} is not": self.model.context % (2 * layout.context) != 0
            and layout.context > 1,
            "it has been run on CPUs alone: give execution.device = cpu": self.execution.device == "cuda",
            f"train.batch = {train.batch} does not divide into {self.parts} equal parts": train.batch % self.parts != 0,
            **{f"{key} is read by one process: leave it out": choice is not None for key, choice in others.items()},
        }
        for why, true in refused.items():
            if true:
                raise ValueError(f"parallel: {why}")
        if train.micro_batch is not None and (train.batch // self.parts) % train.micro_batch:
            raise ValueError(
                f"parallel: train.micro_batch = {train.micro_batch} does not divide a process's part of the batch, "
                f"{train.batch // self.parts}"
            )

    def _check_rows(self) -> None:
        """Refuse shapes that vary where one is needed."""
        data, compiled = self.data, self.execution.compile != "none"
        for key, choice in (("rows", data.rows), ("length", data.length), ("selection", data.selection)):
            if choice is not None and self.transport in ("torchft", "pipeline"):
                raise ValueError(
                    f"data.{key} = {choice.name}: transport = {self.transport} reads every window, of one length"
                )
        if data.length is not None:
            data.length.build(self.model.context)
            if compiled:
                raise ValueError(
                    f"data.length = {data.length.name}: compiled blocks take one shape: give execution.compile = none"
                )
        target: Any = data.rows.card.target if data.rows else None
        if data.rows is not None and target.varies:
            if compiled:
                raise ValueError(
                    f"data.rows = {data.rows.name}: compiled blocks take one shape: give execution.compile = none"
                )
            if data.length is not None or data.source:
                raise ValueError(
                    f"data.rows = {data.rows.name} has rows of its own lengths: leave data.length and data.source out"
                )

    def _check_interventions(self) -> None:
        """Refuse what would plant other texts than were asked for."""
        for choice in self.data.interventions:
            choice.build()
            if self.transport in ("torchft", "pipeline") or (self.workers > 1 and self.transport == "distributed"):
                raise ValueError(
                    f"data.interventions = {choice.name}: rows are planted in one process: set workers = 1, or transport = local"
                )
            if self.data.rows is not None or self.data.kind != "text" or self.data.packing == "whole":
                raise ValueError(
                    f"data.interventions = {choice.name} plants texts in windows of text: leave data.rows and chats out, and give "
                    "data.packing = stream or isolated"
                )

    def _check_sources(self) -> None:
        """Several processes would each hear, and be at, something else: what they read must not hang on it."""
        if self.transport in ("torchft", "pipeline"):
            raise ValueError(f"data.source: transport = {self.transport} reads one corpus: give data.corpus")
        mixture = self.data.mixture
        target: Any = mixture.card.target if mixture else None
        if self.workers > 1 and self.transport == "distributed" and mixture and not target.constant:
            raise ValueError(
                f"data.mixture = {mixture.name} changes on the way, which processes do not agree on: set workers = 1, or "
                "transport = local"
            )

    def _check_inner(self) -> None:
        """Whether an outer loop may move the weights: the fallback's say counts where it is given any."""
        first: Any = self.optim.card.target
        for name, choice in (("optim", self.optim), ("fallback", self.fallback)):
            target: Any = choice.card.target
            used = target is first or not target.accepts <= first.accepts
            if used and getattr(target, "state_holds_weights", False):
                raise ValueError(
                    f"{name} = {choice.name} keeps weights of its own in its state, which sync = {self.sync.name} would "
                    "leave behind: choose another optimiser, or --sync none"
                )

    def _check_workers(self) -> None:
        train, workers = self.train, self.workers
        if self.sync.name == "none":
            raise ValueError(
                f"workers = {workers} need a way to exchange what they learn: give --sync muloco or --sync diloco"
            )
        if train.batch % workers:
            raise ValueError(f"train.batch = {train.batch} does not divide into equal parts for {workers} workers")
        if train.micro_batch is not None and (train.batch // workers) % train.micro_batch:
            raise ValueError(
                f"train.micro_batch = {train.micro_batch} does not divide a worker's part of the batch, {train.batch // workers}"
            )
        if train.noise_scale_every:
            raise ValueError("train.noise_scale_every is measured by one worker: set workers = 1")

    def _check_elastic(self) -> None:
        who = "transport = torchft: workers that come and go"
        if self.sync.name == "none":
            raise ValueError(f"{who} need a way to exchange what they learn: give --sync muloco or --sync diloco")
        options = self.sync.options
        for key, alone in (("fragments", 1), ("overlap", 0)):
            if options.get(key, alone) != alone:
                raise ValueError(
                    f"{who} exchange the whole model at once: sync.{key} = {options[key]} needs --transport distributed"
                )
        if self.batch_size.name != "constant":
            raise ValueError(
                f"{who} take a constant number of sequences a step: batch_size = {self.batch_size.name} is not"
            )
        if getattr(self.schedule.build(), "milestones", ()):
            raise ValueError(
                f"{who} keep no checkpoints at shares of the budget: schedule = {self.schedule.name} needs --transport distributed"
            )

    def _check_pipeline(self) -> None:
        """Refuse what a pipeline has not got, before any work."""
        who, model, execution = "transport = pipeline:", self.model, self.execution
        optimisers = [choice.card.target for choice in (self.optim, self.fallback)]
        refused = {
            f"workers = {self.workers}: it is one worker, cut into stages: set workers = 1": self.workers > 1,
            f"sync = {self.sync.name}: its stages exchange nothing else: give --sync none": self.sync.name != "none",
            "it trains a model as it is: give no edits": bool(self.edits),
            "it judges one text: give no old.corpus": bool(self.old.corpus),
            f"objective = {self.objective.name}: its last stage knows next_token alone": self.objective.name
            != "next_token",
            f"batch_size = {self.batch_size.name}: every step has the same batch: give --batch-size constant": (
                self.batch_size.name != "constant"
            ),
            "data.packing = isolated: its stages see no documents: give --data.packing stream": (
                self.data.packing != "stream"
            ),
            "train.noise_scale_every is measured in one process: set it to 0": bool(self.train.noise_scale_every),
            f"schedule = {self.schedule.name} sets weight decay, which the stages keep": hasattr(
                self.schedule.build(), "weight_decay"
            ),
            f"optim = {self.optim.name}, fallback = {self.fallback.name}: one asks for second derivatives or keeps weights in "
            "its state, which is not to be had across stages": any(
                hasattr(target, "wants_curvature") or getattr(target, "state_holds_weights", False)
                for target in optimisers
            ),
            "its stages read each token, and see those before it: give model.causal = true and model.hides = false": (
                model.hides or not model.causal
            ),
            "a tied embedding would be in two stages: set model.tied = false": model.tied,
            f"model.layers = {model.layers} do not divide into pipeline.stages = {self.pipeline.stages}": (
                model.layers % self.pipeline.stages != 0
            ),
        }
        for key, value in PIPELINE_EXECUTION.items():
            refused[f"execution.{key} must be {value}, not {getattr(execution, key)}"] = (
                getattr(execution, key) != value
            )
        for why, true in refused.items():
            if true:
                raise ValueError(f"{who} {why}")
