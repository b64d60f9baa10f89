"""Four bits in blocks of 256 columns whose scales and minimums have six: GGUF's Q4_K."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.method import Iterations, method
from shoestring.quantise.format import CodeFormat, Parameter, Parameters, half
from shoestring.quantise.formats.integer_groups import IntegerGroups

BLOCK, PART = 256, 32
PARTS = BLOCK // PART
TOP, FINE = 15, 63
"""The largest code, and the largest of six bits."""


STORED: Mapping[str, Parameter] = {
    "scale": Parameter(torch.float16),
    "least": Parameter(torch.float16),
    "parts": Parameter(torch.uint8, PARTS),
    "bottoms": Parameter(torch.uint8, PARTS),
}


@method(
    "quantise",
    kind="format",
    name="k_blocks",
    claim="none: llama.cpp's Q4_K, as its file format has it",
    cost="4.5 bits a weight in GGUF, 4.625 in a folder here",
)
@dataclass(frozen=True, kw_only=True)
class KBlocks(CodeFormat):
    """Codes of four bits in blocks of 256 columns; each 32 of them have a scale and a minimum that are numbers of six bits.

    Of a block, with d and e float16 and of each part p of 32 columns a_p, b_p in 0 .. 63:

        w~ = d a_p q - e b_p,    q in 0 .. 15

    (ggml's block_q4_K, llama.cpp, ggml/src/ggml-common.h). A part's range is from its least weight, or 0, to its largest;
    `clips` ranges are tried. A matrix whose columns are no multiple of 256 is in groups of 32 instead, as Q4_0 (`IntegerGroups`).

    clips: ranges that are tried, from the whole one down to half of it.
    """

    clips: Iterations = 12

    @property
    def group(self) -> int:
        return BLOCK

    @property
    def levels(self) -> int:
        return TOP + 1

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return STORED

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "k_blocks", kind="format", **asdict(self))

    def of(self, weight: Tensor) -> CodeFormat:
        if weight.shape[1] % BLOCK:
            return IntegerGroups(code_bits=4, group=PART, symmetric=True, clips=self.clips)
        return self

    def size(self, rows: int, columns: int) -> int:
        form = self.of(torch.empty(0, columns))
        return super().size(rows, columns) if form is self else form.size(rows, columns)

    def fit(self, block: Tensor, importance: Tensor | None) -> dict[str, Tensor]:
        cut = block.view(len(block), PARTS, PART)
        weights = torch.ones_like(cut) if importance is None else importance.reshape(-1, PARTS, PART).expand_as(cut)
        best = torch.full(cut.shape[:2], torch.inf)
        scales, bottoms = torch.zeros(cut.shape[:2]), torch.zeros(cut.shape[:2])
        for place in range(self.clips):
            share = 1 - 0.5 * place / max(self.clips - 1, 1)
            low = (cut.amin(2) * share).clamp_max(0)
            step = ((cut.amax(2) * share - low) / TOP).clamp_min(0)
            safe = torch.where(step == 0, 1.0, step)[..., None]
            codes = ((cut - low[..., None]) / safe).round().clamp(0, TOP)
            error = ((codes * step[..., None] + low[..., None] - cut).square() * weights).sum(2)
            better = error < best
            best, scales = torch.where(better, error, best), torch.where(better, step, scales)
            bottoms = torch.where(better, -low, bottoms)
        scale, least = half(scales.amax(1) / FINE), half(bottoms.amax(1) / FINE)
        return {
            "scale": scale,
            "least": least,
            "parts": _sixths(scales, scale),
            "bottoms": _sixths(bottoms, least),
        }

    def _steps(self, parameters: Parameters, columns: int, start: int) -> tuple[Tensor, Tensor]:
        """(scale, minimum) of each column, [rows, columns]."""
        part = (torch.arange(start, start + columns)) // PART
        scales = parameters["scale"].float()[:, None] * parameters["parts"].float()[:, part]
        return scales, parameters["least"].float()[:, None] * parameters["bottoms"].float()[:, part]

    def code(self, values: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        scales, bottoms = self._steps(parameters, values.shape[1], start)
        steps = torch.where(scales == 0, 1.0, scales)
        return ((values + bottoms) / steps).round().clamp(0, TOP).to(torch.uint8)

    def value(self, codes: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        scales, bottoms = self._steps(parameters, codes.shape[1], start)
        return scales * codes.float() - bottoms


def _sixths(numbers: Tensor, scale: Tensor) -> Tensor:
    """uint8 [rows, parts]: numbers as multiples of a scale, 0 to 63."""
    steps = torch.where(scale == 0, 1.0, scale.float())[:, None]
    return (numbers / steps).round().clamp(0, FINE).to(torch.uint8)
