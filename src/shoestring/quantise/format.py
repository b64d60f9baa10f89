"""What a number format of a trained matrix is: codes of few levels, and parameters for every group of columns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.packing.grouped import GROUP, GroupedMatrix
from shoestring.lowbit.packing.grouped import groups_of as native_groups
from shoestring.quantise.bit_codes import pack, packed_bytes, unpack, width
from shoestring.quantise.inputs import RoundedInputs
from shoestring.quantise.kronecker import Kronecker

Parameters = Mapping[str, Tensor]
"""By name: [rows, ...] of one group, or [rows, groups, ...] of all."""

LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True)
class Parameter:
    """What a group has beside its codes. dtype: as stored. size: numbers of it."""

    dtype: torch.dtype
    size: int = 1


class CodeFormat(ABC):
    """Codes 0 to `levels` - 1 for weights, and parameters for each run of `group` columns of a row.

    Registered as a method of the kind 'format' of the engine 'quantise'; its options are all that it is made of.

    smooth: whether `value` takes codes that are no integers, and gives gradients to them.
    """

    smooth: ClassVar[bool] = False
    widths: ClassVar[tuple[int, ...]] = ()
    """The bits of a code that `at` takes."""

    @property
    @abstractmethod
    def group(self) -> int:
        """Columns that share parameters; 0: a whole row. The last group of a row may be shorter."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """How many codes there are."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, Parameter]:
        """What a group has, by name."""

    @property
    @abstractmethod
    def choice(self) -> Choice:
        """Its name and all its options."""

    @abstractmethod
    def fit(self, block: Tensor, importance: Tensor | None) -> dict[str, Tensor]:
        """The parameters of a group of each row.

        block: float32 [rows, columns of the group].
        importance: [rows or 1, columns], what a squared error of a weight of each column costs; None: all alike.
        Returns: [rows] of each parameter, or [rows, size], in its stored type.
        """

    @abstractmethod
    def code(self, values: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        """The nearest codes, uint8 [rows, c], of numbers [rows, c]. start: the place of the first column within its group."""

    @abstractmethod
    def value(self, codes: Tensor, parameters: Parameters, start: int = 0) -> Tensor:
        """float32 [rows, c]: what codes [rows, c] stand for."""

    def of(self, weight: Tensor) -> "CodeFormat":
        """The format of this matrix [rows, columns]: some look at it to settle their options. Raises: UsageError where none
        fits."""
        return self

    def at(self, bits: int) -> "CodeFormat":
        """The same with so many bits a code. Raises: UsageError where there is none."""
        raise UsageError(
            f"the format '{self.choice.name}' has one width of codes: a target must be met without changing it"
        )

    def native(self, encoded: "Encoded") -> GroupedMatrix | None:
        """The matrix as the kernels for groups of 32 columns hold it, exactly; None where they cannot."""
        return None

    def signed(self, codes: Tensor) -> Tensor | None:
        """int8: integers of 4 or 8 bits, where codes are such and a weight is one times its group's 'scale'; else None."""
        return None

    @property
    def bits(self) -> float:
        """Of a code."""
        return 8 / 5 if self.levels == 3 else float(width(self.levels))

    def group_of(self, columns: int) -> int:
        """Columns of a group of a matrix so wide."""
        return min(self.group or columns, columns)

    def size(self, rows: int, columns: int) -> int:
        """Bytes of a matrix."""
        groups = -(-columns // self.group_of(columns)) if columns else 0
        each = sum(one.size * one.dtype.itemsize for one in self.parameters.values())
        return packed_bytes(rows * columns, self.levels) + rows * groups * each

    def encode(self, weight: Tensor, importance: Tensor | None = None) -> "Encoded":
        """The matrix rounded to the nearest codes. importance: as in `fit`, [columns]. Raises: ShoestringError, UsageError."""
        weight = checked(weight)
        form = self.of(weight)
        fitted = form.fit_all(weight, importance)
        codes = torch.empty(weight.shape, dtype=torch.uint8)
        for first, last, part in form.runs(weight.shape[1]):
            values = weight[:, first:last].reshape(-1, part)
            codes[:, first:last] = form.code(values, form.part(fitted, first, last)).view(len(weight), -1)
        return form.encoded(codes, fitted)

    def runs(self, columns: int) -> list[tuple[int, int, int]]:
        """(first column, last, columns of a group): the whole groups together, then the shorter last one."""
        group = self.group_of(columns)
        whole = columns // group * group if group else 0
        found = [(0, whole, group)] if whole else []
        return found + ([(whole, columns, columns - whole)] if whole < columns else [])

    def part(self, fitted: Parameters, first: int, last: int) -> dict[str, Tensor]:
        """The parameters of the groups of these columns, groups of the same row beside each other: [rows groups, ...]."""
        columns = next(iter(fitted.values())).shape[1] if fitted else 0
        group = self.group or last
        begin, end = first // group, -(-last // group)
        return {name: one[:, begin : min(end, columns)].flatten(0, 1) for name, one in fitted.items()}

    def fit_all(self, weight: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """[rows, groups, ...]: the parameters of all groups of a matrix."""
        rows, columns = weight.shape
        found: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        for first, last, part in self.runs(columns):
            groups = (last - first) // part
            block = weight[:, first:last].reshape(rows * groups, part)
            weights = None if importance is None else importance[first:last].view(1, groups, part)
            if weights is not None:
                weights = weights.expand(rows, groups, part).reshape(rows * groups, part)
            for name, one in self.fit(block, weights).items():
                found[name].append(one.view(rows, groups, *one.shape[1:]))
        made = {name: torch.cat(parts, 1) for name, parts in found.items()}
        for name, one in made.items():
            if one.is_floating_point() and not bool(one.isfinite().all()):
                raise ShoestringError(f"its weights are too large: a {name} of a group is beyond float16")
        return made

    def encoded(self, codes: Tensor, fitted: Parameters) -> "Encoded":
        """From codes uint8 [rows, columns] and the parameters of all groups."""
        rows, columns = codes.shape
        kept = {name: one.contiguous() for name, one in fitted.items()}
        return Encoded(self, rows, columns, pack(codes, self.levels), kept)


@dataclass(frozen=True)
class Encoded:
    """A matrix [rows, columns] in a number format.

    codes: packed, uint8. parameters: of all groups. pair: the transform P of what the layer reads, where the codes are of W P^-T.
    inputs: how what it reads, P^T x with a transform, is rounded; None: not by the model.
    Raises: ShoestringError where these do not fit each other.
    """

    format: CodeFormat
    rows: int
    columns: int
    codes: Tensor
    parameters: Parameters
    pair: Kronecker | None = None
    inputs: RoundedInputs | None = None

    def __post_init__(self) -> None:
        form = self.format
        if self.rows < 1 or self.columns < 1:
            raise ShoestringError(f"a matrix of {self.rows} x {self.columns} has no weights")
        if self.codes.dtype != torch.uint8 or self.codes.shape != (
            packed_bytes(self.rows * self.columns, form.levels),
        ):
            raise ShoestringError(f"{list(self.codes.shape)} bytes are not the codes of {self.rows} x {self.columns}")
        groups = -(-self.columns // form.group_of(self.columns))
        if set(self.parameters) != set(form.parameters):
            raise ShoestringError(f"the parameters of '{form.choice.name}' are {', '.join(form.parameters)}")
        for name, told in form.parameters.items():
            wanted = (self.rows, groups) if told.size == 1 else (self.rows, groups, told.size)
            one = self.parameters[name]
            if one.dtype != told.dtype or tuple(one.shape) != wanted:
                raise ShoestringError(f"{name} is {one.dtype} {list(one.shape)}, not {told.dtype} {list(wanted)}")
            if one.is_floating_point() and not bool(one.isfinite().all()):
                raise ShoestringError(f"{name} holds a number that is not finite")
        if self.pair is not None and self.pair.size != self.columns:
            raise ShoestringError(f"a transform of {self.pair.size} columns is not of {self.columns}")

    @property
    def nbytes(self) -> int:
        """Of all that is stored."""
        parts = [
            self.codes,
            *self.parameters.values(),
            *(() if self.inputs is None else self.inputs.parameters.values()),
            *(() if self.pair is None else (self.pair.left, self.pair.right)),
        ]
        return sum(part.nbytes for part in parts)

    def unpacked(self) -> Tensor:
        """uint8 [rows, columns]: the codes."""
        return unpack(self.codes, self.rows * self.columns, self.format.levels).view(self.rows, self.columns)

    def plain(self) -> Tensor:
        """float32 [rows, columns]: what the codes stand for, a transform not undone."""
        codes, form = self.unpacked(), self.format
        made = torch.empty(self.rows, self.columns)
        for first, last, part in form.runs(self.columns):
            values = form.value(codes[:, first:last].reshape(-1, part), form.part(self.parameters, first, last))
            made[:, first:last] = values.view(self.rows, -1)
        return made

    def dequantise(self) -> Tensor:
        """float32 [rows, columns]: the weights that a plain layer has for it."""
        found = self.plain()
        return found if self.pair is None else self.pair.transposed.times(found)

    @cached_property
    def integers(self) -> Tensor | None:
        """int8 [rows, columns]: codes that are signed integers of 4 or 8 bits with one scale a row and nothing else; else None."""
        one_scale = set(self.parameters) == {"scale"} and self.parameters["scale"].shape == (self.rows, 1)
        return self.format.signed(self.unpacked()) if one_scale else None

    @cached_property
    def native(self) -> GroupedMatrix | None:
        """As the kernels for groups hold it; None where they cannot. A transform is for whoever multiplies."""
        return self.format.native(self)


def checked(weight: Tensor) -> Tensor:
    """float32 on the CPU. Raises: ShoestringError for a number that is not finite, or no matrix."""
    if weight.ndim != 2 or not weight.numel():
        raise ShoestringError(f"a number format is of matrices: this weight has the shape {list(weight.shape)}")
    found = weight.detach().cpu().float().contiguous()
    if not bool(found.isfinite().all()):
        raise ShoestringError("a weight is NaN or infinite: it has no code")
    return found


def half(numbers: Tensor) -> Tensor:
    """float16; what is beyond it becomes infinite, which `fit_all` refuses."""
    return numbers.to(torch.float16)


def spread(numbers: Tensor, group: int, columns: int) -> Tensor:
    """[rows, groups of 32 columns]: parameters [rows, groups] repeated for the kernels' groups."""
    count = native_groups(columns)
    if numbers.shape[1] == 1:
        return numbers.expand(-1, count).contiguous()
    return numbers.repeat_interleave(group // GROUP, 1)[:, :count].contiguous()


def filled(codes: Tensor) -> Tensor:
    """Codes with zeros up to whole groups of 32 columns."""
    rows, columns = codes.shape
    made = codes.new_zeros(rows, native_groups(columns) * GROUP)
    made[:, :columns] = codes
    return made


def divides(group: int, columns: int) -> bool:
    """Whether groups of a format are whole groups of the kernels."""
    return group == 0 or group >= columns or group % GROUP == 0


def restored(described: Any) -> CodeFormat:
    """The format of {'name': ..., options}. Raises: ShoestringError where there is none."""
    if not isinstance(described, dict) or not isinstance(described.get("name"), str):
        raise ShoestringError("a matrix does not say its number format")
    options = {key: value for key, value in described.items() if key != "name"}
    try:
        made: CodeFormat = Choice.of("quantise", described["name"], kind="format", **options).build()
    except (UsageError, ValueError, TypeError) as error:
        raise ShoestringError(
            f"a matrix has no number format of this program: {' '.join(str(error).split())}"
        ) from None
    return made
