"""One worker of slow_link.py, started in its namespace as under torchrun: python link_worker.py SPECIFICATION.json RESULT.json

It trains a stated number of steps and writes down when they began and ended, by the clock that all processes of this machine
share, the processor time it took, what the kernel counted on its link meanwhile, and what the program counted. The clock
starts when all workers are ready: the corpus read, two steps taken for the caches with another model, everybody connected. An
outer loop's last exchange is on it. Evaluations and checkpoints are not made.

The steps are `shoestring train`'s own (`train.step`, `train.team`), around which `ddp` lays torch's DistributedDataParallel.
"""

import json
import logging
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from link_counters import read_counters
from links import INTERFACE
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shoestring import atomic
from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL, Ledger
from shoestring.budget.machine import cache_folder
from shoestring.config import build
from shoestring.contract import objective as contract
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel, LanguageModule
from shoestring.contract.objective import At, Objective
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError
from shoestring.launch.processes import available_cores, share_of_cores
from shoestring.sync.rendezvous.all_gather import all_gather
from shoestring.sync.rendezvous.joining import join, leave
from shoestring.sync.transport.base import Transport
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.assembly import Parts, assemble
from shoestring.train.company import Company, CompanyOfOne, Worker
from shoestring.train.config import RunConfig
from shoestring.train.participation import join_workers
from shoestring.train.vote import Vote

BEGIN, END, WARM = 11, 12, 2
"""Occasions of `share`, and steps before the clock starts."""


class Loss(nn.Module):
    """The objective as a module, so that DDP sees the pass whose gradients it averages."""

    def __init__(self, model: LanguageModule, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, values: Tensor, targets: Tensor) -> Tensor:
        return self.objective(self.model, Batch(Inputs(values), targets), At()).mean


class Averaged:
    """The objective of a stepper whose gradients DDP averages. It has no documents and no weights."""

    def __init__(self, model: LanguageModule, objective: Objective) -> None:
        self.objective = objective
        self.averaged = DistributedDataParallel(
            Loss(model, objective), broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
        )

    def count(self, batch: Batch) -> float:
        return self.objective.count(batch)

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> contract.Loss:
        flops = model.cost(Shape(batch.rows, batch.inputs.length, backward=True)).flops
        return contract.Loss(self.averaged(batch.inputs.values, batch.targets), {MODEL: Charge(flops=flops)})


def data_parallel(parts: Parts) -> Worker:
    """The worker's own stepper, its gradients averaged by DDP at every step; all begin at the same weights, from the seed."""
    stepper = parts.stepper
    stepper.objective = Averaged(stepper.model, stepper.objective)
    return stepper


def take(
    parts: Parts, steps: Worker, company: Company, first: int, count: int, total: int, sequences: int
) -> list[float]:
    """When each of the steps first .. first + count - 1 of `total` ended."""
    ended = []
    for step in range(first, first + count):
        batch = parts.source.batch(step * sequences, sequences)
        company.decide(step, Vote(left=total - step))
        steps.gradients(batch, At(step))
        steps.apply(parts.schedule(step / total))
        ended.append(time.monotonic())
    return ended


def train(specification: dict[str, Any], transport: Transport) -> dict[str, Any]:
    config = build(RunConfig, specification["config"])
    dataset = prepare(config.data, cache_folder())
    config = replace(config, model=replace(config.model, vocabulary=dataset.tokenizer.vocabulary))
    total, count, batch = specification["total"], specification["steps"], config.train.batch
    parts = assemble(config, dataset, transport.rank)
    warm = assemble(config, dataset, transport.rank)
    ledger, team = Ledger(None), None
    steps: Worker = data_parallel(parts) if specification["ddp"] else parts.stepper
    company: Company = CompanyOfOne(parts.stepper)
    if specification["ddp"]:
        # DDP settles its buckets in its first steps: they are taken with it, and the model is still the same one
        take(parts, steps, company, 0, WARM, total, batch)
    else:
        take(warm, warm.stepper, CompanyOfOne(warm.stepper), 0, WARM, total, batch)
        team = join_workers(config, parts, ledger, transport)
        if team is not None:
            steps, company = team, team
    all_gather(transport, None, number=BEGIN)
    counted, traffic = read_counters(INTERFACE), asdict(transport.traffic)
    began, taken = time.monotonic(), time.process_time()
    ended = take(parts, steps, company, WARM if specification["ddp"] else 0, count, total + WARM, batch)
    company.conclude()
    concluded, taken = time.monotonic(), time.process_time() - taken
    kernel = read_counters(INTERFACE).since(counted)
    own = {name: getattr(transport.traffic, name) - traffic[name] for name in ("sent", "received")}
    all_gather(transport, None, number=END)
    return {
        "rank": transport.rank,
        "began": began,
        "ended": ended,
        "concluded": concluded,
        "processor": taken,
        "kernel": asdict(kernel),
        "own": own,
        "parameters": sum(parameter.numel() for parameter in parts.model.parameters()),
        "exchanges": None if team is None else asdict(team.exchanges),
    }


def main(words: list[str]) -> int:
    logging.basicConfig(level="INFO", format="%(message)s")
    specification = json.loads(Path(words[0]).read_text())
    torch.set_num_threads(1)
    keep_freed_memory()
    os.sched_setaffinity(0, share_of_cores(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), available_cores()))
    try:
        transport = join(specification["patience"])
        try:
            found = train(specification, transport)
        finally:
            leave(transport)
    except ShoestringError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    atomic.write_text(Path(words[1]), json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
