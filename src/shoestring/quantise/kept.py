"""Encoded matrices as tensors by name and JSON values, and back: what a decision, a file of a layer and a folder hold."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.quantise.format import Encoded, restored
from shoestring.quantise.inputs import restored_inputs
from shoestring.quantise.kronecker import Kronecker

CODES, LEFT, RIGHT, INPUTS = "codes", "left", "right", "inputs."
MOST = 1 << 17
"""Columns of a matrix, as the kernels have it; and the most rows are such that a code has a place of int32."""


def written(matrices: Mapping[str, Encoded]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(of each matrix its format, rows and columns; tensors named MATRIX:PART)."""
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, one in matrices.items():
        choice = one.format.choice
        values[name] = {
            "format": {"name": choice.name, **choice.options},
            "rows": one.rows,
            "columns": one.columns,
            "transformed": one.pair is not None,
        }
        if one.inputs is not None:
            rounding = one.inputs.rounding.choice
            values[name]["inputs"] = {"name": rounding.name, **rounding.options}
            tensors |= {f"{name}:{INPUTS}{key}": part for key, part in one.inputs.parameters.items()}
        tensors[f"{name}:{CODES}"] = one.codes
        tensors |= {f"{name}:{key}": part for key, part in one.parameters.items()}
        if one.pair is not None:
            tensors |= {f"{name}:{LEFT}": one.pair.left, f"{name}:{RIGHT}": one.pair.right}
    return values, {name: tensor.contiguous() for name, tensor in tensors.items()}


def read_back(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Encoded]:
    """The matrices that `written` was given. Raises: ShoestringError, naming the matrix, where something does not fit."""
    found = {}
    for name, told in values.items():
        try:
            found[name] = _one(name, told, tensors)
        except ShoestringError as error:
            raise ShoestringError(f"{name}: {error}") from None
    return found


def names_of(matrices: Mapping[str, Encoded]) -> set[str]:
    """The names of the tensors of matrices."""
    return set(written(matrices)[1])


def _one(name: str, told: Any, tensors: Mapping[str, Tensor]) -> Encoded:
    if not isinstance(told, dict):
        raise ShoestringError("it is not described")
    rows, columns = told.get("rows"), told.get("columns")
    if not (isinstance(rows, int) and isinstance(columns, int) and 0 < rows < 1 << 31 and 0 < columns <= MOST):
        raise ShoestringError(f"{rows} x {columns} is no size of a matrix")

    def take(part: str) -> Tensor:
        if f"{name}:{part}" not in tensors:
            raise ShoestringError(f"its {part} are missing")
        return tensors[f"{name}:{part}"]

    form = restored(told.get("format"))
    pair = None
    if told.get("transformed"):
        pair = Kronecker(_square(take(LEFT)), _square(take(RIGHT)))
    inputs = None
    if told.get("inputs") is not None:
        start = f"{name}:{INPUTS}"
        inputs = restored_inputs(
            told["inputs"], {key.removeprefix(start): one for key, one in tensors.items() if key.startswith(start)}
        )
    made = Encoded(form, rows, columns, take(CODES), {key: take(key) for key in form.parameters}, pair, inputs)
    made.unpacked()  # refuses codes that cannot occur
    return made


def _square(part: Tensor) -> Tensor:
    if part.ndim != 2 or part.shape[0] != part.shape[1] or not part.is_floating_point() or not part.isfinite().all():
        raise ShoestringError(f"a transform is of square matrices of finite numbers, not {list(part.shape)}")
    return part.float()
