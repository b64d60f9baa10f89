"""What a number format is: codes of few bits, a scale for every block of weights, and a gradient that passes straight through."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.method import Count

ScaleOf = Literal["tensor", "row", "group"]
"""What has a scale of its own: a matrix (or each of its shards of rows), a row, or a run of a row's columns."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """A matrix in a number format: `codes` int8 [rows, columns], `scales` float32 [rows, groups].

    The columns are divided into `groups` equal runs, each with its scale; 1 where a row has one scale. A scale that rows
    share is repeated for each. Raises: ShoestringError where the two do not go together.
    """

    codes: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int8 or self.scales.dtype != torch.float32:
            raise ShoestringError(f"codes are int8 and scales float32, not {self.codes.dtype} and {self.scales.dtype}")
        shapes = tuple(self.codes.shape), tuple(self.scales.shape)
        if self.codes.ndim != 2 or self.scales.ndim != 2 or shapes[0][0] != shapes[1][0] or shapes[1][1] < 1:
            raise ShoestringError(f"codes of the shape {shapes[0]} cannot have scales of the shape {shapes[1]}")
        if shapes[0][1] % shapes[1][1]:
            raise ShoestringError(f"{shapes[0][1]} columns do not divide into {shapes[1][1]} groups")

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def dequantise(self) -> Tensor:
        """codes * scales, float32 [rows, columns]."""
        rows, groups = self.scales.shape
        return (self.codes.view(rows, groups, self.group) * self.scales[:, :, None]).view(self.codes.shape)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(latent: Tensor, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept for the way back."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


def straight_through(latent: Tensor, values: Tensor) -> Tensor:
    """`values`, with the gradient that arrives at them handed to `latent` as it is (Bengio, Léonard & Courville (2013),
    Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation, arXiv:1308.3432)."""
    passed: Tensor = _StraightThrough.apply(latent, values)
    return passed


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """Signed codes of at most `largest`, times a scale for every block of a matrix [rows, columns].

    scale: what has a scale of its own: 'tensor', 'row', or 'group', runs of `group` columns, which must divide the columns
    (a shorter row is one group).
    shards: with 'tensor', equal parts of the rows, from the top down, with a scale each.
    group: columns of a group.

    A format is a method (`kind="format"`) that says what the scale of a block is and how large its codes get. All arithmetic
    is float32, but for sums, which are float64, so that the codes do not depend on the order of summation.
    """

    scale: ScaleOf = "tensor"
    shards: Count = 1
    group: Count = 256

    def __post_init__(self) -> None:
        if self.shards > 1 and self.scale != "tensor":
            raise UsageError(f"shards = {self.shards} are of scale = tensor: each {self.scale} has a scale already")

    @property
    @abstractmethod
    def bits(self) -> float:
        """Bits that a code carries."""

    @property
    @abstractmethod
    def largest(self) -> int:
        """The largest code."""

    @abstractmethod
    def block_scales(self, blocks: Tensor) -> Tensor:
        """The scale of each row of `blocks` float32 [blocks, elements] -> float32 [blocks, 1]. 0 makes all codes 0."""

    def groups(self, rows: int, columns: int) -> tuple[int, int]:
        """(blocks in a matrix, scales in a row). Raises: UsageError where the matrix does not divide so."""
        if self.scale == "tensor":
            if rows % self.shards:
                raise UsageError(f"shards = {self.shards} do not divide {rows} rows")
            return self.shards, 1
        if self.scale == "row":
            return rows, 1
        group = min(self.group, max(columns, 1))
        if columns % group:
            raise UsageError(f"group = {self.group} does not divide {columns} columns")
        return rows * max(columns // group, 1), max(columns // group, 1)

    def quantise(self, weight: Tensor) -> Quantised:
        """The codes and scales of `weight` [rows, columns]: what inference uses.

        Raises: ShoestringError for a weight that is NaN or infinite, or has an infinite scale in float32; UsageError where the
        matrix does not divide into the blocks of this format.
        """
        if weight.ndim != 2:
            raise ShoestringError(f"a number format is of matrices: this weight has the shape {tuple(weight.shape)}")
        rows, columns = weight.shape
        blocks, groups = self.groups(rows, columns)
        if not weight.numel():
            empty = weight.new_zeros((rows, groups), dtype=torch.float32)
            return Quantised(weight.new_zeros((rows, columns), dtype=torch.int8), empty)
        codes, scales = self._round(weight.detach())
        if not bool(torch.isfinite(weight).all()):
            raise ShoestringError("a weight is NaN or infinite: it has no code")
        if not bool(torch.isfinite(scales).all()):
            raise ShoestringError("the weights are too large: their scale is infinite in float32")
        spread = scales.repeat_interleave(rows * groups // blocks, 0) if self.scale == "tensor" else scales
        return Quantised(codes.to(torch.int8).view(rows, columns), spread.view(rows, groups).contiguous())

    def fake(self, weight: Tensor) -> Tensor:
        """The numbers that `quantise` stands for, in the type of `weight`, with straight-through gradients.

        In float32 they are those of `quantise(weight).dequantise()` bit for bit. NaN stays NaN.
        """
        if not weight.numel():
            return weight
        codes, scales = self._round(weight.detach())
        return straight_through(weight, (codes * scales).view(weight.shape).to(weight.dtype))

    def _round(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(codes as float32 [blocks, elements], scales [blocks, 1])."""
        blocks, _ = self.groups(weight.shape[0], weight.shape[1])
        view = weight.float().reshape(blocks, weight.numel() // blocks)
        scales = self.block_scales(view)
        divisor = torch.where(scales == 0, 1.0, scales)
        codes = (view / divisor).clamp(-self.largest, self.largest).round()
        return codes.add_(0.0), scales  # adding 0 makes -0 a 0, as an integer has it
