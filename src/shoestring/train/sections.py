"""The sections of a run's configuration that are the trainer's own: how it loops, computes, waits and is cut into stages."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval
from torch import nn

from shoestring.config import Choice, Pick
from shoestring.method import Count, Fraction, Positive, Whole
from shoestring.schedule.progress import Share

Seconds = Annotated[float, Interval(gt=0, le=1e9)]
"""A time to wait, of at most 116 days."""


@dataclass(frozen=True)
class TrainConfig:
    """How the loop runs. Shares are of the budget.

    batch: sequences a step.
    micro_batch: sequences at once (None: the whole batch); gradients add up over them.
    gradient_clip: largest gradient norm.
    warmup: share over which the learning rate rises from zero.
    evaluate_every: share between two held-out evaluations.
    heldout_tokens: targets in each of them, at most.
    checkpoint_every: seconds.
    keep: checkpoints kept.
    noise_scale_every: steps between two measurements of the gradient noise scale, which take a step of several
    micro-batches; 0: never.
    sample: prompt of the text drawn at the end; None: the corpus's own ('def main(' of python-stdlib), or the first
    words of a held-out document.
    sample_tokens: its length.
    spike: a smoothed loss this many nats above its lowest stops the run.
    base_optimizer: go on with the optimiser's state of model.base, a run: planned as a run and not as the tuning of a model,
    with learning rates, weight decay, betas and epsilon of its own all the same.
    """

    batch: Annotated[int, Interval(ge=1, le=1 << 20)] = 16
    micro_batch: Count | None = None
    gradient_clip: Annotated[float, Interval(gt=0, le=1e12)] = 1.0
    warmup: Fraction = 0.02
    evaluate_every: Share = 0.25
    heldout_tokens: Count = 65536
    checkpoint_every: Annotated[float, Interval(gt=0, le=1e9)] = 60.0
    keep: Count = 2
    noise_scale_every: Whole = 0
    sample: str | None = None
    sample_tokens: Whole = 160
    spike: Positive = 2.0
    base_optimizer: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch = {self.batch}")
        if self.noise_scale_every and self.micro_batch in (None, self.batch):
            raise ValueError(
                "noise_scale_every compares a part of the batch with the whole: set micro_batch below batch"
            )


@dataclass(frozen=True)
class ExecutionConfig:
    """How the arithmetic is carried out. 'auto' is decided by a short measurement and written down in the run.

    device: 'auto', 'cpu' or 'cuda'.
    precision: of products of matrices; 'auto', 'float32' or 'bfloat16'.
    compile: 'blocks' compiles the blocks of the model, 'none' nothing.
    attention: 'auto', 'flash' or 'chunked'.
    loss: how the loss is computed; 'auto', 'plain', 'fused' or 'fused_compiled'.
    threads: of the processor; 0 keeps torch's own number.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "none", "blocks"] = "auto"
    attention: Literal["auto", "flash", "chunked"] = "auto"
    loss: Literal["auto", "plain", "fused", "fused_compiled"] = "auto"
    threads: Annotated[int, Interval(ge=0, le=4096)] = 0


@dataclass(frozen=True)
class ElasticConfig:
    """How long workers that come and go (transport = 'torchft') wait for each other, in seconds.

    silence: without a sign of life, until a worker counts as dead.
    exchange: that an exchange, a vote or the transfer of the run's state may take.
    stragglers: that those who are ready for a round wait for those who are alive and still busy; it must exceed what
    their steps differ by, and what a held-out evaluation takes.
    patience: until a worker that finds no round to take part in gives up.
    """

    silence: Seconds = 5.0
    exchange: Seconds = 30.0
    stragglers: Seconds = 120.0
    patience: Seconds = 600.0


RECOVERY = Pick("sync", "recovery", default="checkpoint")


@dataclass(frozen=True)
class PipelineConfig:
    """How a model is cut into the stages of a pipeline (transport = 'pipeline'), each in a process of its own.

    stages: into how many; they must divide model.layers.
    recovery: what is done when the process of a stage dies.
    silence: seconds without a sign of life until a process counts as dead.
    """

    stages: Annotated[int, Interval(ge=1, le=64)] = 4
    recovery: Annotated[Choice, RECOVERY] = field(default_factory=RECOVERY.choice)
    silence: Seconds = 30.0

    def __post_init__(self) -> None:
        self.recovery.build().check(
            [nn.Identity()] * self.stages
        )  # the number of stages; `Pipeline` looks at their shapes


PIPELINE_EXECUTION = {"device": "cpu", "precision": "float32", "compile": "none", "attention": "flash", "loss": "plain"}
"""How the stages of a pipeline compute: what `ExecutionConfig` must say."""
