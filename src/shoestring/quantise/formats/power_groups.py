"""NUPES: codes equally spaced after a power, whose exponent each matrix has for itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import Whole, method
from shoestring.quantise.format import CodeFormat, Parameter, Parameters, checked, half
from shoestring.quantise.formats.integer_groups import CodeBits

Exponent = Annotated[float, Interval(ge=0, le=4)]
LEAST, MOST, STEP = 0.3, 1.2, 0.05
"""Exponents that are tried."""

SMALL = 1e-12
"""What keeps the derivative of a power finite at 0."""


STORED: Mapping[str, Parameter] = {"largest": Parameter(torch.float16)}


@method(
    "quantise",
    kind="format",
    name="power_groups",
    paper="NUPES : Non-Uniform Post-Training Quantization via Power Exponent Search, arXiv:2308.05600",
    claim="state-of-the-art compression rates in both data-free and data-driven configurations",
    cost="bits + 16 / group bits a weight; some passes over the weights to find the exponent",
)
@dataclass(frozen=True, kw_only=True)
class PowerGroups(CodeFormat):
    """Round a power of the weights to equally spaced numbers: small weights, of which there are more, are told apart better.

    Yvinec et al. (2023), arXiv:2308.05600. Powers are automorphisms of the positive numbers with multiplication: they keep
    products. With a group w of a row, L = 2^(bits - 1) - 1 and the exponent a of the matrix:

        s = max |w|^a / L,    q = round(sign(w) |w|^a / s),    w~ = sign(q) (s |q|)^(1 / a)

    a is that of the least squared error, of those from 0.3 to 1.2 in steps of 0.05, found on up to 256 rows; a = 1 is the
    uniform case. The solver `nupes` then learns the codes. Differs: the paper goes on to learn the exponent by gradients; what
    is stored of a group is s^(1/a), float16; the layers compute with the numbers that codes stand for, not with integers.

    code_bits: of a code, its sign included.
    group: columns that share a scale; 0: a whole row.
    exponent: a; 0: found for each matrix.
    """

    widths: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 8)
    smooth: ClassVar[bool] = True

    code_bits: CodeBits = 4
    group: Whole = 64
    exponent: Exponent = 0.0

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return STORED

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "power_groups", kind="format", **asdict(self))

    @property
    def levels(self) -> int:
        return 1 << self.code_bits

    @property
    def top(self) -> int:
        """L, the largest code."""
        return int(2 ** (self.code_bits - 1) - 1)

    def at(self, bits: int) -> "PowerGroups":
        if bits not in self.widths:
            raise UsageError(f"powers in groups have {', '.join(map(str, self.widths))} bits, not {bits}")
        return PowerGroups(**{**asdict(self), "code_bits": bits})

    def of(self, weight: Tensor) -> CodeFormat:
        if self.exponent:
            return self
        some = checked(weight)[:: max(1, len(weight) // 256)]
        best, least = self._with(1.0), float("inf")
        for place in range(round((MOST - LEAST) / STEP) + 1):
            tried = self._with(round(LEAST + place * STEP, 6))
            error = float((tried.encode(some).plain() - some).square().sum())
            if error < least:
                best, least = tried, error
        return best

    def _with(self, exponent: float) -> "PowerGroups":
        return PowerGroups(code_bits=self.code_bits, group=self.group, exponent=exponent)

    def fit(self, block: Tensor, importance: Tensor | None) -> dict[str, Tensor]:
        return {"largest": half(block.abs().amax(1))}

    def code(self, values: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        largest = parameters["largest"].float()[:, None]
        share = values / torch.where(largest == 0, 1.0, largest)
        places = share.sign() * share.abs().pow(self.exponent) * self.top
        return (places.round().clamp(-self.top, self.top) + self.top).to(torch.uint8)

    def value(self, codes: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        share = (codes.float() - self.top) / self.top
        power = share.abs().clamp_min(SMALL).pow(1 / self.exponent)
        return share.sign() * power * parameters["largest"].float()[:, None]
