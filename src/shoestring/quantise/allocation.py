"""Which matrix gets how many bits: what each width costs, what it loses, and what may be spent."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.anatomy import Matrix
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.quantise.format import CodeFormat

PROBE = 512
"""Tokens of text that a loss is measured on; their logits are held in float16."""


class BitAllocation:
    """The choice of a width for every matrix. A loss is that of the model with matrices rounded to the nearest.

    model: is changed while a loss is measured, and put back.
    format: at any of `widths`.
    costs: [matrices][widths], of what is limited: bits, bytes or seconds.
    limit: of their sum.
    unit: what they are, for messages.
    text: to measure on; may be empty.
    over: whether the budget is spent.
    fixed: what all else takes of the target, for messages.
    """

    def __init__(
        self,
        model: LanguageModule,
        matrices: Sequence[Matrix],
        format: CodeFormat,
        widths: Sequence[int],
        costs: Sequence[Sequence[float]],
        limit: float,
        unit: str,
        text: Sequence[Batch],
        over: Callable[[], bool],
        fixed: float = 0.0,
    ) -> None:
        self.model, self.matrices, self.format = model, list(matrices), format
        self.widths, self.costs, self.limit, self.unit = tuple(widths), [list(one) for one in costs], limit, unit
        self.text, self.over, self.spent = _first(text), over, NOTHING
        self._plain: list[Tensor] | None = None
        least = sum(min(one) for one in self.costs)
        if least > limit * (1 + 1e-9):
            asked = f"a target of {_shown(limit + fixed)} {unit} cannot be reached"
            raise UsageError(f"{asked}: the least that this format can do is {_shown(least + fixed)}")

    def cost(self, chosen: Sequence[int]) -> float:
        """Of the widths of all matrices."""
        return sum(row[self.widths.index(bits)] for row, bits in zip(self.costs, chosen, strict=True))

    def fits(self, chosen: Sequence[int]) -> bool:
        return self.cost(chosen) <= self.limit * (1 + 1e-9)

    def uniform(self) -> int:
        """The largest width that all matrices may have. Raises: UsageError where none fits."""
        for bits in reversed(self.widths):
            if self.fits([bits] * len(self.matrices)):
                return bits
        raise UsageError(f"no width of codes is within {_shown(self.limit)} {self.unit} for all matrices alike")

    @cached_property
    def errors(self) -> list[list[float]]:
        """[matrices][widths]: |W - W~|^2 / |W|^2 of rounding to the nearest."""
        return [[self._error(one.weight, bits) for bits in self.widths] for one in self.matrices]

    def _error(self, weight: Tensor, bits: int) -> float:
        plain = weight.detach().float()
        off = self.format.at(bits).encode(plain).dequantise() - plain
        return float(off.square().sum() / plain.square().sum().clamp_min(1e-30))

    @torch.no_grad()
    def loss(self, chosen: Sequence[int | None]) -> float:
        """What these widths cost: nats a token by which the model's distribution of the next token is off that of the plain
        model (the
        Kullback-Leibler divergence). None leaves a matrix as it is. Raises: UsageError without text."""
        if not self.text:
            raise UsageError("bits that are chosen by what they lose need text: none was given")
        if self._plain is None:
            self._plain = [found.half() for found in self._log_probabilities()]
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for one, bits in zip(self.matrices, chosen, strict=True):
                if bits is not None:
                    kept.append((one.weight, one.weight.detach().clone()))
                    one.weight.copy_(self.format.at(bits).encode(one.weight).dequantise())
            total, count = 0.0, 0
            for found, half in zip(self._log_probabilities(), self._plain, strict=True):
                plain = half.float().log_softmax(-1)
                total += float(((plain - found) * plain.exp()).sum())
                count += len(found)
            return total / count
        finally:
            for weight, before in kept:
                weight.copy_(before)

    def _log_probabilities(self) -> Iterator[Tensor]:
        """float32 [tokens, V] of each batch."""
        for batch in self.text:
            reading = self.model.read(batch.inputs.to(self.model.device))
            flops = reading.cost.flops + reading.head.flops(batch.targets.numel())
            self.spent += Charge(flops=flops, read=batch.targets.numel(), calls=1)
            yield reading.logits().float().log_softmax(-1).flatten(0, 1).cpu()

    def sensitivities(self) -> list[list[float]]:
        """[matrices][widths]: what each matrix alone costs at each width, as `loss` has it.

        Measured at the smallest width. At others it is in proportion to the squared error, as a divergence is near its minimum.
        Where the budget ends before, the rest are as sensitive as the median of those measured.
        """
        found = list[float]()
        for place in range(len(self.matrices)):
            if self.over():
                break
            alone: list[int | None] = [None] * len(self.matrices)
            alone[place] = self.widths[0]
            found.append(max(self.loss(alone), 0.0))
        errors = self.errors
        each = [loss / max(row[0], 1e-30) for loss, row in zip(found, errors, strict=False)]
        rest = sorted(each)[len(each) // 2] if each else 1.0
        each += [rest] * (len(self.matrices) - len(each))
        return [[factor * error for error in row] for factor, row in zip(each, errors, strict=True)]


def _shown(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.4g}"


def _first(text: Sequence[Batch]) -> list[Batch]:
    """Batches of about `PROBE` tokens."""
    found, tokens = list[Batch](), 0
    for batch in text:
        if tokens >= PROBE:
            break
        rows = max(1, min(batch.rows, (PROBE - tokens) // batch.inputs.length))
        found.append(batch.take(slice(rows)) if rows < batch.rows else batch)
        tokens += rows * batch.inputs.length
    return found
