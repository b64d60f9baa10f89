"""Integers of 2 to 8 bits with a scale, and a minimum, for each group of columns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.lowbit.packing.grouped import GroupedMatrix
from shoestring.method import Iterations, Whole, method
from shoestring.quantise.format import CodeFormat, Encoded, Parameter, Parameters, divides, filled, half, spread

CodeBits = Annotated[int, Interval(ge=2, le=8)]
NARROWEST = 0.5
"""Of the range of a group, where narrower ones are tried."""

SCALE = {"scale": Parameter(torch.float16)}
BOTH = {**SCALE, "minimum": Parameter(torch.float16)}


@method(
    "quantise",
    kind="format",
    name="integer_groups",
    paper="ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers, arXiv:2206.01861",
    claim="weights in groups with scales of their own, activations a token: INT8 with minimal loss of accuracy",
    cost="bits + 16 / group bits a weight; with a minimum bits + 32 / group",
)
@dataclass(frozen=True, kw_only=True)
class IntegerGroups(CodeFormat):
    """Round each weight to one of 2^b equally spaced numbers, whose spacing is each group's own.

    With a group w of a row and codes q in 0 .. 2^b - 1, b = code_bits:

        asymmetric: w~ = m + s q,               m = min w, s = (max w - min w) / (2^b - 1)
        symmetric:  w~ = s (q - 2^(b - 1)),  s = -w_j / 2^(b - 1), j the largest |w|; at 8 bits s = max |w| / 127

    s and m are float16, and codes are found with them as they are stored. Symmetric with groups of 32 at 4 and 8 bits, it is GGUF's
    Q4_0 and Q8_0. `clips` ranges from the whole one down to half of it are tried, and that of the least squared error is taken.

    Where a target asks for more than 4 bits, codes are symmetric: the kernels have no minimums there.

    code_bits: of a code.
    group: columns that share a scale; 0: a whole row.
    symmetric: no minimum.
    clips: ranges that are tried; 1: the whole one alone.
    """

    smooth: ClassVar[bool] = True
    widths: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 8)

    code_bits: CodeBits = 4
    group: Whole = 64
    symmetric: bool = False
    clips: Iterations = 12

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "integer_groups", kind="format", **asdict(self))

    @property
    def levels(self) -> int:
        return 1 << self.code_bits

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return SCALE if self.symmetric else BOTH

    def at(self, bits: int) -> "IntegerGroups":
        if bits not in self.widths:
            raise UsageError(f"integers in groups have {', '.join(map(str, self.widths))} bits, not {bits}")
        symmetric = self.symmetric or bits > 4
        return IntegerGroups(code_bits=bits, group=self.group, symmetric=symmetric, clips=self.clips)

    def fit(self, block: Tensor, importance: Tensor | None) -> dict[str, Tensor]:
        best: dict[str, Tensor] = {}
        least = torch.full((len(block),), torch.inf)
        for place in range(self.clips):
            share = 1 - (1 - NARROWEST) * place / max(self.clips - 1, 1)
            tried = self._range(block, share)
            off = (self.value(self.code(block, tried), tried) - block).square()
            error = (off if importance is None else off * importance).sum(1)
            better = error < least if place else torch.ones(len(block), dtype=torch.bool)
            least = torch.where(better, error, least)
            best = {name: torch.where(better, one, best.get(name, one)) for name, one in tried.items()}
        return best

    def _range(self, block: Tensor, share: float) -> dict[str, Tensor]:
        """The parameters of so much of the range of each row."""
        if not self.symmetric:
            low, high = block.amin(1) * share, block.amax(1) * share
            minimum = half(low)
            return {"scale": half((high - minimum.float()) / (self.levels - 1)), "minimum": minimum}
        place = block.abs().argmax(1, keepdim=True)
        largest = share * block.gather(1, place)[:, 0]
        return {"scale": half(largest.abs() / 127 if self.code_bits == 8 else -largest / (self.levels // 2))}

    def code(self, values: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        scale = parameters["scale"].float()[:, None]
        steps = torch.where(scale == 0, 1.0, scale)
        low = 1 if self.symmetric and self.code_bits == 8 else 0
        shifted = values - parameters["minimum"].float()[:, None] if not self.symmetric else values
        places = (shifted / steps).round() + (self.levels // 2 if self.symmetric else 0)
        return places.clamp(low, self.levels - 1).to(torch.uint8)

    def value(self, codes: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        scale = parameters["scale"].float()[:, None]
        if self.symmetric:
            return (codes.float() - self.levels // 2) * scale
        return codes.float() * scale + parameters["minimum"].float()[:, None]

    def signed(self, codes: Tensor) -> Tensor | None:
        if not self.symmetric or self.code_bits not in (4, 8):
            return None
        return (codes.int() - self.levels // 2).to(torch.int8)

    def native(self, encoded: Encoded) -> GroupedMatrix | None:
        if not divides(self.group, encoded.columns):
            return None
        scales = spread(encoded.parameters["scale"], self.group, encoded.columns)
        codes = encoded.unpacked()
        if self.symmetric and self.code_bits > 4:
            return GroupedMatrix(filled((codes.int() - self.levels // 2).to(torch.int8)), scales, None)
        if self.code_bits > 4:
            return None
        if not self.symmetric:
            return GroupedMatrix(
                filled(codes), scales, spread(encoded.parameters["minimum"], self.group, encoded.columns)
            )
        minimums = (scales.float() * -(self.levels // 2)).half()  # by a power of two: exact, or infinite
        return GroupedMatrix(filled(codes), scales, minimums) if bool(minimums.isfinite().all()) else None
