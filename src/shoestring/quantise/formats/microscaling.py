"""MX: small floating-point or integer elements, and a power of two for each 32 of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.lowbit.packing.grouped import GroupedMatrix
from shoestring.method import method
from shoestring.quantise.format import CodeFormat, Encoded, Parameter, Parameters, filled

Element = Literal["fp8_e4m3", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8"]
BLOCK = 32
BIAS = 127
"""Of the exponent of a block, which is a byte."""


class ElementKind(NamedTuple):
    """bits: of an element. exponent, mantissa: bits of these. largest: the greatest finite number. top: its exponent."""

    bits: int
    exponent: int
    mantissa: int
    largest: float
    top: int


KINDS: dict[str, ElementKind] = {
    "fp8_e4m3": ElementKind(8, 4, 3, 448.0, 8),
    "fp8_e5m2": ElementKind(8, 5, 2, 57344.0, 15),
    "fp6_e3m2": ElementKind(6, 3, 2, 28.0, 4),
    "fp6_e2m3": ElementKind(6, 2, 3, 7.5, 2),
    "fp4_e2m1": ElementKind(4, 2, 1, 6.0, 2),
    "int8": ElementKind(8, 0, 6, 127 / 64, 0),
}
AT = {4: "fp4_e2m1", 6: "fp6_e2m3", 8: "int8"}
"""The elements of so many bits."""


STORED: Mapping[str, Parameter] = {"exponent": Parameter(torch.uint8)}


@method(
    "quantise",
    kind="format",
    name="microscaling",
    paper="Microscaling Data Formats for Deep Learning, arXiv:2310.10537",
    claim="a drop-in replacement for 32-bit floating point in inference, with little loss at 8 and 6 bits",
    cost="8.25, 6.25 or 4.25 bits a weight",
)
@dataclass(frozen=True, kw_only=True)
class Microscaling(CodeFormat):
    """Each block of 32 weights of a row shares a power of two; each weight is an element of 8, 6 or 4 bits times that.

    Rouhani et al. (2023), arXiv:2310.10537, and the specification of the Open Compute Project. With a block w and elements whose
    greatest exponent is e_max:

        X = 2^(floor(log2 max |w|) - e_max),    w~ = X element(w / X)

    to the nearest element, ties to the even mantissa; beyond the largest it is the largest. X is a byte, 2^-127 to 2^127. Elements:
    FP8 (E4M3, E5M2), FP6 (E3M2, E2M3), FP4 (E2M1), INT8 (sixty-fourths, -127 to 127). Codes are the elements' own bits. No code of
    NaN or infinity is used.

    element: which.
    """

    widths: ClassVar[tuple[int, ...]] = tuple(AT)

    element: Element = "fp4_e2m1"

    @property
    def group(self) -> int:
        return BLOCK

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return STORED

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "microscaling", kind="format", **asdict(self))

    @property
    def levels(self) -> int:
        return 1 << KINDS[self.element].bits

    def at(self, bits: int) -> "Microscaling":
        if bits not in AT:
            raise UsageError(f"MX has elements of 4, 6 and 8 bits, not {bits}")
        if KINDS[self.element].bits == bits:
            return self
        return Microscaling(element=AT[bits])  # type: ignore[arg-type]

    def fit(self, block: Tensor, importance: Tensor | None) -> dict[str, Tensor]:
        largest = block.abs().amax(1)
        exponent = torch.frexp(torch.where(largest == 0, 1.0, largest)).exponent - 1 - KINDS[self.element].top
        exponent = torch.where(largest == 0, -BIAS, exponent)
        return {"exponent": (exponent.clamp(-BIAS, BIAS) + BIAS).to(torch.uint8)}

    def code(self, values: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        kind = KINDS[self.element]
        scaled = values.double() / _power(parameters["exponent"])
        if not kind.exponent:
            return (scaled * 64).round().clamp(-127, 127).to(torch.int8).view(torch.uint8)
        known = magnitudes(self.element).double()
        middle = (known[1:] + known[:-1]) / 2
        size = scaled.abs().contiguous()
        low, high = torch.searchsorted(middle, size), torch.searchsorted(middle, size, right=True)
        places = torch.where((low != high) & (low % 2 == 1), high, low)  # a tie goes to the even code
        return (places | ((scaled < 0).long() << (kind.bits - 1))).to(torch.uint8)

    def value(self, codes: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        return (_elements(codes, self.element).double() * _power(parameters["exponent"])).float()

    def native(self, encoded: Encoded) -> GroupedMatrix | None:
        """As bytes, where all elements are multiples of one number and at most 127 of it, and float16 holds the powers."""
        unit = {"int8": 1 / 64, "fp4_e2m1": 0.5, "fp6_e2m3": 0.125}.get(self.element)
        if unit is None:
            return None
        scales = torch.pow(2.0, encoded.parameters["exponent"].double() - BIAS).float() * unit
        narrow = scales.half()
        if not torch.equal(narrow.float(), scales):
            return None
        return GroupedMatrix(filled((_elements(encoded.unpacked(), self.element) / unit).to(torch.int8)), narrow, None)


@cache
def magnitudes(element: str) -> Tensor:
    """float32: the finite numbers that are not negative, in the order of their codes."""
    kind = KINDS[element]
    bias = (1 << kind.exponent - 1) - 1
    found = []
    for code in range(1 << kind.bits - 1):
        exponent, fraction = code >> kind.mantissa, code & ((1 << kind.mantissa) - 1)
        share = fraction / (1 << kind.mantissa)
        found.append((1 + share) * 2.0 ** (exponent - bias) if exponent else share * 2.0 ** (1 - bias))
    return torch.tensor([number for number in found if number <= kind.largest])


def _elements(codes: Tensor, element: str) -> Tensor:
    """float32: what codes stand for, but for the power."""
    kind = KINDS[element]
    if not kind.exponent:
        return codes.contiguous().view(torch.int8).float() / 64
    known = magnitudes(element)
    half = 1 << kind.bits - 1
    found = known[(codes & (half - 1)).long().clamp_max(len(known) - 1)]
    return torch.where(codes >= half, -found, found)


def _power(exponent: Tensor) -> Tensor:
    """float64 [rows, 1]."""
    return torch.pow(2.0, exponent.double() - BIAS)[:, None]
