"""The file of a packed model: one safetensors file whose metadata says what it is, checked whole before it is used.

docs/packing.md has it part by part. A file cannot ask for more than it brings: no tensor of it is empty, and every size that it
states is checked against the bytes that it has before memory is taken.
"""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from shoestring import atomic
from shoestring.config import build
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.lowbit.packing import check_groups, integer, layout_named
from shoestring.lowbit.packing.layout import check_size

FORMAT = "shoestring-packed"
VERSION = 1
KEY = "shoestring"
WIDTHS = {"U8": 1, "I8": 1, "F16": 2, "F32": 4}
"""Bytes of an element of the types that there are, by the names safetensors has for them."""

Size = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Module:
    """How a packed module is described: of a layout, or of a number of bits."""

    rows: Size
    columns: Size
    layout: str = ""
    bits: Size = 0


@dataclass(frozen=True)
class _Description:
    format: str
    version: int
    config: dict[str, Any]
    modules: dict[str, Module]
    sha256: str = field(default="")


@dataclass(frozen=True)
class Contents:
    """What a file holds. config: as it was given to `write`. modules: packed, by their names in the model. others: the rest
    of the model's state, float32."""

    config: dict[str, Any]
    modules: dict[str, PackedLinear | PackedEmbedding]
    others: dict[str, Tensor]


def write(path: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write a model, some modules of which are `PackedLinear` or `PackedEmbedding`, to `path`: whole, or not at all.

    config: what is needed to build the model, as JSON values. Raises: ShoestringError where the rest is not float32, a tensor
    is empty, or a number is not finite.
    """
    modules: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        if isinstance(part, PackedLinear):
            modules[name] = {"rows": part.out_features, "columns": part.in_features, "layout": part.layout}
            tensors |= {f"{name}.packed": part.packed, f"{name}.scales": _distinct(part.scales)}
        elif isinstance(part, PackedEmbedding):
            modules[name] = {"rows": part.out_features, "columns": part.in_features, "bits": part.bits}
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
    for name, value in model.state_dict().items():
        if name.rpartition(".")[0] not in modules:
            if value.dtype != torch.float32:
                raise ShoestringError(f"{name} is {value.dtype}: what is not packed is stored in float32")
            tensors[name] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    for name, value in tensors.items():
        if not value.numel():
            raise ShoestringError(f"{name} has the shape {list(value.shape)}: no tensor of a packed model is empty")
    _refuse_unbounded(path, tensors)
    described = {"format": FORMAT, "version": VERSION, "config": config, "modules": modules}
    described["sha256"] = _digest(described, tensors)
    atomic.write_bytes(path, save(tensors, {KEY: json.dumps(described)}))


def read(path: Path) -> Contents:
    """What `write` wrote. Nothing in the file is trusted: its checksum, and then that each part is what it says.

    Raises: UsageError where there is no such file. ShoestringError, in one line, where it is cut short or damaged, is of
    another kind or version, or lacks a tensor, has one of another shape or type, an empty one, a byte that cannot occur or a
    number that is not finite.
    """
    described, tensors = _open(path)
    plain = {key: value for key, value in described.items() if key != "sha256"}
    try:
        if _digest(plain, tensors) != described.get("sha256"):
            raise ShoestringError(f"{path} is damaged: its checksum is not the one recorded")
        description = build(_Description, described)
    except UsageError as error:
        raise ShoestringError(_line(f"{path} is not described as a packed model: {error}")) from None
    except RecursionError:
        raise ShoestringError(f"{path} is not described as a packed model: tables within tables without end") from None
    _refuse_unbounded(path, tensors)
    modules = {}
    for name, entry in description.modules.items():
        try:
            modules[name] = _module(name, entry, tensors)
        except ShoestringError as error:
            raise ShoestringError(_line(f"{path}: {name}: {error}")) from None
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise ShoestringError(f"{path}: {name} belongs to no packed module and is not float32")
    return Contents(description.config, modules, tensors)


def install(path: Path, contents: Contents, model: nn.Module) -> None:
    """Put what was read from `path` in its places in `model`, whose own weights (they may be on the meta device) it replaces.

    Raises: ShoestringError where the model has no such places, others besides, or of another shape.
    """
    for name, packed in contents.modules.items():
        try:
            old = model.get_submodule(name)
        except AttributeError:
            old = None
        held = getattr(old, "weight", None) if isinstance(old, nn.Linear | nn.Embedding) else None
        if held is None or tuple(held.shape) != (packed.out_features, packed.in_features):
            wanted = "none there" if held is None else f"one of {tuple(held.shape)}"
            raise ShoestringError(
                f"{path}: {name} is a matrix of {packed.out_features} x {packed.in_features}, and the model has {wanted}"
            )
        model.set_submodule(name, packed)
    places = {
        name: value.shape
        for name, value in model.state_dict().items()
        if name.rpartition(".")[0] not in contents.modules
    }
    for name in sorted(places.keys() ^ contents.others.keys()):
        raise ShoestringError(
            f"{path} {'lacks' if name in places else 'has, and the model has not,'} the tensor {name}"
        )
    for name, value in contents.others.items():
        if value.shape != places[name]:
            raise ShoestringError(f"{path}: {name} is {tuple(value.shape)}, and the model's is {tuple(places[name])}")
    model.load_state_dict(contents.others, strict=False, assign=True)


def outline(path: Path) -> tuple[dict[str, Module], dict[str, tuple[list[int], int]]]:
    """(packed modules, (shape, bytes) of every tensor) of a file that `read` has found good; no tensor is read."""
    with safe_open(path, "pt") as file:
        description = build(_Description, _described(path, file.metadata()))
        found = {}
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            piece = file.get_slice(name)
            found[name] = piece.get_shape(), math.prod(piece.get_shape()) * WIDTHS[piece.get_dtype()]
        return description.modules, found


def _open(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(description, tensors) of a file that says that it is a packed model of this version."""
    try:
        with safe_open(path, "pt") as file:
            described = _described(path, file.metadata())
            names = list(file.keys())
            for name in names:
                piece = file.get_slice(name)
                if not name.isprintable():
                    raise ShoestringError(f"{path}: {name!r} is no name of a tensor")
                if piece.get_dtype() not in WIDTHS:
                    raise ShoestringError(f"{path}: {name} is of a type that no part of a packed model has")
                if not math.prod(piece.get_shape()):
                    raise ShoestringError(f"{path}: {name} is empty, which no tensor of a packed model is")
            # copied: memory of our own is aligned for the kernels, and does not change with the file
            return described, {name: file.get_tensor(name).clone() for name in names}
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except SafetensorError as error:
        raise ShoestringError(_line(f"{path} is cut short, damaged or no safetensors file: {error}")) from None


def _described(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        described = json.loads((metadata or {})[KEY])
    except (KeyError, ValueError, RecursionError):
        described = None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise ShoestringError(f"{path} is not a packed model: its metadata does not say '{FORMAT}'")
    if described.get("version") != VERSION:
        raise ShoestringError(f"{path} has version {described.get('version')!r}, this program reads version {VERSION}")
    return described


def _module(name: str, entry: Module, tensors: dict[str, Tensor]) -> PackedLinear | PackedEmbedding:
    """The module of an entry, its tensors taken out of `tensors`."""

    def take(key: str) -> Tensor:
        if f"{name}.{key}" not in tensors:
            raise ShoestringError(f"the tensor {name}.{key} is missing")
        return tensors.pop(f"{name}.{key}")

    rows, columns = entry.rows, entry.columns
    made: PackedLinear | PackedEmbedding
    if entry.bits:
        weight, scales = take("weight"), take("scales") if entry.bits < 16 else None
        made = PackedEmbedding(weight, scales, rows, columns, entry.bits)
        if entry.bits == 8 and bool((weight == -128).any()):
            raise ShoestringError("it holds -128, which no weight is rounded to")
        if entry.bits == 4:
            last = (columns - 1) // integer.BLOCK  # the block that is filled up
            integer.unpack(weight[:, last * integer.BLOCK // 2 :], columns - last * integer.BLOCK)
    else:
        packed, distinct = take("packed"), take("scales")
        layout = layout_named(entry.layout)
        check_size(packed, rows, columns, layout)
        if distinct.dim() != 2 or rows % len(distinct):
            raise ShoestringError(f"scales of the shape {list(distinct.shape)} are not those of {rows} rows")
        check_groups(distinct.shape[1], columns, layout)
        # no more than the packed bytes: a number for a row, or for a block's columns of it
        scales = distinct.repeat_interleave(rows // len(distinct), 0)
        made = PackedLinear(packed, scales, rows, columns, entry.layout)
    return made


def _line(text: str) -> str:
    """What quotes a file, in one line."""
    return "".join(character if character.isprintable() else " " for character in text)


def _distinct(scales: Tensor) -> Tensor:
    """The scales [rows, groups] of the fewest equal runs of rows that share theirs: [S, groups]."""
    rows = len(scales)
    for count in range(1, rows):
        if rows % count == 0:
            runs = scales.view(count, rows // count, -1)
            if torch.equal(runs, runs[:, :1].expand_as(runs)):
                return runs[:, 0]
    return scales


def _refuse_unbounded(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ShoestringError(f"{path}: {name} holds a number that is not finite")


def _digest(described: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()
