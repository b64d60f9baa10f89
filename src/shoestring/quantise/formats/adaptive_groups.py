"""FineQuant: groups as fine as each matrix needs, by a look at the ranges of its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method
from shoestring.quantise.format import CodeFormat, Parameter, checked
from shoestring.quantise.formats.integer_groups import CodeBits, IntegerGroups

STORED: Mapping[str, Parameter] = {}


@method(
    "quantise",
    kind="format",
    name="adaptive_groups",
    paper="FineQuant: Unlocking Efficiency with Fine-Grained Weight-Only Quantization for LLMs, arXiv:2308.09723",
    claim="the weights alone say how fine groups must be; up to 3.65 times the throughput of OPT-175B on the same GPUs",
    cost="a few passes over the weights; bits a weight and two numbers of 16 bits a group",
)
@dataclass(frozen=True, kw_only=True)
class AdaptiveGroups(CodeFormat):
    """Integers in groups whose size is halved, matrix by matrix, as long as that narrows the ranges of the groups enough.

    Kim et al. (2023), arXiv:2308.09723. With r(g) the mean over groups of g columns of max |w|, beginning with whole rows:

        g <- g / 2 while r(g / 2) < alpha r(g) and g / 2 >= smallest

    Then as `integer_groups` with that group. Differs: the paper states its heuristic in words; this is our reading. Groups here
    run along what a layer reads. Groups are powers of two times `smallest`.

    code_bits: of a code.
    alpha: how much narrower ranges must become for finer groups.
    smallest: columns of a group, at least.
    symmetric: as of `integer_groups`.
    """

    widths: ClassVar[tuple[int, ...]] = IntegerGroups.widths

    code_bits: CodeBits = 4
    alpha: Fraction = 0.9
    smallest: Count = 32
    symmetric: bool = False

    @property
    def group(self) -> int:
        return 0

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return STORED

    @property
    def choice(self) -> Choice:
        return Choice.of("quantise", "adaptive_groups", kind="format", **asdict(self))

    @property
    def levels(self) -> int:
        return 1 << self.code_bits

    def at(self, bits: int) -> "AdaptiveGroups":
        if bits not in self.widths:
            raise UsageError(f"integers in groups have {', '.join(map(str, self.widths))} bits, not {bits}")
        return AdaptiveGroups(**{**asdict(self), "code_bits": bits})

    def of(self, weight: Tensor) -> CodeFormat:
        found, columns = checked(weight).abs(), weight.shape[1]
        group = self.smallest
        while group < columns:
            group *= 2
        before = _range(found, columns)
        chosen = 0
        while group // 2 >= self.smallest:
            group //= 2
            now = _range(found, group)
            if now >= self.alpha * before and group < columns:
                break
            before, chosen = now, group if group < columns else 0
        return self._with(chosen)

    def _with(self, group: int) -> IntegerGroups:
        return IntegerGroups(code_bits=self.code_bits, group=group, symmetric=self.symmetric)

    def size(self, rows: int, columns: int) -> int:
        """Bytes at the smallest group, which is the most that it can be."""
        return self._with(self.smallest).size(rows, columns)

    def fit(self, block: Tensor, importance: Tensor | None) -> dict[str, Tensor]:
        raise UsageError("adaptive groups are settled for a whole matrix: ask `of` for its format")

    def code(self, values: Tensor, parameters: object, start: int = 0) -> Tensor:
        raise UsageError("adaptive groups are settled for a whole matrix: ask `of` for its format")

    def value(self, codes: Tensor, parameters: object, start: int = 0) -> Tensor:
        raise UsageError("adaptive groups are settled for a whole matrix: ask `of` for its format")


def _range(sizes: Tensor, group: int) -> float:
    """r(g): the mean of the largest of each group."""
    whole = sizes.shape[1] // group * group
    parts = [sizes[:, :whole].unflatten(1, (-1, group)).amax(2)] if whole else []
    if whole < sizes.shape[1]:
        parts.append(sizes[:, whole:].amax(1, keepdim=True))
    return float(torch.cat(parts, 1).mean())
