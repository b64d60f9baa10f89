"""A configuration made into parts: model, objective, optimiser, schedule, batches, evaluation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from shoestring.data.dataset import Dataset
from shoestring.data.windows import Windows
from shoestring.model.transformer import Transformer
from shoestring.optim.composite import Composite
from shoestring.optim.partition import partition
from shoestring.schedule.warmup import with_warmup
from shoestring.train.config import RunConfig
from shoestring.train.evaluate import Evaluator
from shoestring.train.execution import cross_entropy, prepare_blocks
from shoestring.train.step import Stepper

HELDOUT_ORDER = 0
"""Seed of the order in which held-out windows are taken: one for all runs, so that all are judged on the same text."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of. step_flops: operations of one optimiser step. claims: who optimises which parameters."""

    model: Transformer
    optimizer: Composite
    stepper: Stepper
    schedule: Callable[[float], float]
    source: Windows
    evaluator: Evaluator
    step_flops: int
    claims: str


def assemble(config: RunConfig, dataset: Dataset) -> Parts:
    """Build everything a resolved configuration (no 'auto' left) describes, from its seed."""
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    device, batch = config.execution.device, config.train.batch
    torch.manual_seed(config.seed)
    model = config.model.build().to(device)
    claimed = partition(model, config.optim, config.fallback)
    optimizer = claimed.build()
    prepare_blocks(model, config.execution)
    micro_batch = config.train.micro_batch or batch
    stepper = Stepper(
        model,
        config.objective.build(cross_entropy(config.execution)),
        optimizer,
        device=device,
        precision=config.execution.precision,
        micro_batch=micro_batch,
        clip=config.train.gradient_clip,
    )
    context, packing = config.model.context, config.data.packing
    heldout = Windows(dataset.heldout, context, HELDOUT_ORDER, packing)
    evaluator = Evaluator(
        heldout,
        dataset.tokenizer.byte_lengths,
        sequences=min(len(heldout), max(1, config.train.heldout_tokens // context)),
        rows=micro_batch,
        device=device,
        precision=config.execution.precision,
    )
    return Parts(
        model=model,
        optimizer=optimizer,
        stepper=stepper,
        schedule=with_warmup(config.schedule.build(), config.train.warmup),
        source=Windows(dataset.train, context, config.seed, packing),
        evaluator=evaluator,
        step_flops=model.flops(batch, context, backward=True) + optimizer.step_flops(),
        claims=claimed.describe(),
    )
