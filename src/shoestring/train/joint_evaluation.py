"""Held-out evaluation by several processes, each of which reads a part of the windows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.model import LanguageModel
from shoestring.data.windows import BatchSource
from shoestring.parallel.context_parallel import parts_of_rows
from shoestring.parallel.layout import ParallelLayout
from shoestring.train.evaluate import Evaluator, Sums


class _Part:
    """Every `parts`-th run of `rows` windows of `source`, of which there are `sequences`: as many runs for each part, the last of
    which may count nothing."""

    def __init__(self, source: BatchSource, sequences: int, rows: int, part: int, parts: int) -> None:
        self.source, self.sequences, self.rows, self.part, self.parts = source, sequences, rows, part, parts

    def batch(self, start: int, count: int) -> Batch:
        first = (start // self.rows * self.parts + self.part) * self.rows
        if first < self.sequences:
            return self.source.batch(first, min(self.rows, self.sequences - first))
        blank = self.source.batch(0, 1)  # the others' passes need this process too
        return replace(blank, targets=torch.full_like(blank.targets, IGNORED))


class JointEvaluator(Evaluator):
    """An `Evaluator` that all processes of a layout call together, and all of which get what one process would find.

    They stop early together, once any of them has had enough.
    """

    def __init__(self, whole: Evaluator, layout: ParallelLayout) -> None:
        self.whole, self.layout = whole, layout
        super().__init__(
            whole.source,
            whole.byte_lengths,
            sequences=whole.sequences,
            rows=whole.rows,
            device=whole.device,
            precision=whole.precision,
            domains=whole.domains,
            judge=whole.judge,
        )

    def sums(self, model: LanguageModel, enough: Callable[[], bool]) -> Sums:
        def agreed() -> bool:
            vote = torch.tensor([float(enough())])
            dist.all_reduce(vote, op=dist.ReduceOp.MAX)
            return bool(vote)

        layout = self.layout
        each = self.rows * layout.parts
        rounds = -(-self.sequences // each)
        rank = dist.get_rank()
        part = _Part(self.source, self.sequences, self.rows, layout.part(rank), layout.parts)
        own = Evaluator(
            parts_of_rows(part, layout, rank),
            self.byte_lengths,
            sequences=rounds * self.rows,
            rows=self.rows,
            device=self.device,
            precision=self.precision,
            domains=self.domains,
            judge=self.judge,
        )
        found = own.sums(model, agreed)
        numbers: list[Any] = [found.nats, found.targets, found.text, found.flops, found.read]
        total = torch.tensor([*numbers, *found.by_domain.flatten().tolist()], dtype=torch.float64)
        dist.all_reduce(total)
        nats = float(total[0]) / layout.tensor
        targets, text, flops, read = (round(each / layout.tensor) for each in total[1:5].tolist())
        by_domain = (total[5:] / layout.tensor).numpy().reshape(found.by_domain.shape)
        done = min(found.done * layout.parts, self.sequences)
        return Sums(nats, targets, text, flops, read, done, by_domain)
