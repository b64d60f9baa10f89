"""-1, 0 and 1 times a scale for each block of 256 columns: GGUF's TQ1_0 and TQ2_0."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.method import Iterations, method
from shoestring.quantise.format import CodeFormat, Parameter, Parameters, half
from shoestring.quantise.formats.integer_groups import IntegerGroups

BLOCK = 256


STORED: Mapping[str, Parameter] = {"scale": Parameter(torch.float16)}


@method(
    "quantise",
    kind="format",
    name="ternary_blocks",
    paper="Ternary Weight Networks, arXiv:1605.04711",
    claim="a threshold and a scale that minimise the squared error lose little on MNIST, CIFAR-10 and ImageNet, trained so",
    cost="1.66 bits a weight",
)
@dataclass(frozen=True, kw_only=True)
class TernaryBlocks(CodeFormat):
    """Round to -1, 0 or 1 times a float16 scale for 256 columns.

    w~ = s t, t in -1, 0, 1, with s the one of the least squared error of those that are tried.
    Li & Liu (2016), arXiv:1605.04711, seek the same least error by a threshold. Tried are `scales` shares of max |w|, from all
    of it down to a tenth. A matrix whose columns are no multiple of 256 is in groups of 32 at four bits instead, as GGUF's Q4_0.

    scales: how many are tried.
    """

    smooth: ClassVar[bool] = True

    scales: Iterations = 19

    @property
    def group(self) -> int:
        return BLOCK

    @property
    def levels(self) -> int:
        return 3

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return STORED

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "ternary_blocks", kind="format", **asdict(self))

    def of(self, weight: Tensor) -> CodeFormat:
        return IntegerGroups(code_bits=4, group=32, symmetric=True) if weight.shape[1] % BLOCK else self

    def size(self, rows: int, columns: int) -> int:
        form = self.of(torch.empty(0, columns))
        return super().size(rows, columns) if form is self else form.size(rows, columns)

    def fit(self, block: Tensor, importance: Tensor | None) -> dict[str, Tensor]:
        largest = block.abs().amax(1)
        best, least = half(largest), torch.full((len(block),), torch.inf)
        for place in range(self.scales):
            tried = {"scale": half(largest * (1 - 0.9 * place / max(self.scales - 1, 1)))}
            off = (self.value(self.code(block, tried), tried) - block).square()
            error = (off if importance is None else off * importance).sum(1)
            best = torch.where(error < least, tried["scale"], best)
            least = torch.minimum(error, least)
        return {"scale": best}

    def code(self, values: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        scale = parameters["scale"].float()[:, None]
        return ((values / torch.where(scale == 0, 1.0, scale)).round().clamp(-1, 1) + 1).to(torch.uint8)

    def value(self, codes: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        return (codes.float() - 1) * parameters["scale"].float()[:, None]
