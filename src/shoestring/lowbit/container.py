"""The file of a packed model: one safetensors file whose metadata says what it is, checked whole before it is used.

The metadata has the one key `shoestring` (of several, safetensors would settle the order anew in every process), whose
value is JSON:

    {"format": "shoestring-packed", "version": 1, "config": {...}, "sha256": "...",
     "modules": {"blocks.0.token_mixer.qkv": {"rows": 384, "columns": 128, "layout": "ternary2"},
                 "embedding": {"rows": 4096, "columns": 128, "bits": 8}, ...}}

config is the model's, for whoever builds it. A module of a `layout` is a `PackedLinear` and has two tensors, NAME.packed
(uint8, as `packing.pack` lays it out) and NAME.scales (float32 [S, groups], S dividing the rows: scale i is that of the
i-th of S equal runs of rows, so one scale for the whole matrix is stored once). A module of `bits` is a `PackedEmbedding`:
NAME.weight, and NAME.scales (float32 [rows, 1]) below 16 bits. Every other tensor is float32 under its own name. sha256 is
of all of this but itself and of every tensor's name, type, shape and bytes, in the order of their names.
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

    config: what is needed to build the model, as JSON values. Raises: ShoestringError where the rest is not float32, or a
    number is not finite.
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
    _refuse_unbounded(path, tensors)
    described = {"format": FORMAT, "version": VERSION, "config": config, "modules": modules}
    described["sha256"] = _digest(described, tensors)
    atomic.write_bytes(path, save(tensors, {KEY: json.dumps(described)}))


def read(path: Path) -> Contents:
    """What `write` wrote. Nothing in the file is trusted: its checksum, and then that each part is what it says.

    Raises: UsageError where there is no such file. ShoestringError, in one line, where it is cut short or damaged, is of
    another kind or version, or lacks a tensor, has one of another shape or type, a byte that cannot occur or a number that
    is not finite.
    """
    described, tensors = _open(path)
    plain = {key: value for key, value in described.items() if key != "sha256"}
    if _digest(plain, tensors) != described.get("sha256"):
        raise ShoestringError(f"{path} is damaged: its checksum is not the one recorded")
    try:
        description = build(_Description, described)
    except UsageError as error:
        raise ShoestringError(f"{path} is not described as a packed model: {error}") from None
    _refuse_unbounded(path, tensors)
    modules = {}
    for name, entry in description.modules.items():
        try:
            modules[name] = _module(name, entry, tensors)
        except ShoestringError as error:
            raise ShoestringError(f"{path}: {name}: {error}") from None
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
                if file.get_slice(name).get_dtype() not in WIDTHS:
                    raise ShoestringError(f"{path}: {name} is of a type that no part of a packed model has")
            # copied: memory of our own is aligned for the kernels, and does not change with the file
            return described, {name: file.get_tensor(name).clone() for name in names}
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except SafetensorError as error:
        raise ShoestringError(f"{path} is cut short, damaged or no safetensors file: {error}") from None


def _described(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        described = json.loads((metadata or {})[KEY])
    except (KeyError, ValueError, RecursionError):
        described = None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise ShoestringError(f"{path} is not a packed model: its metadata does not say '{FORMAT}'")
    if described.get("version") != VERSION:
        raise ShoestringError(f"{path} has version {described.get('version')}, this program reads version {VERSION}")
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
    else:
        packed, distinct = take("packed"), take("scales")
        if distinct.dim() != 2 or (rows % len(distinct) if len(distinct) else rows):
            raise ShoestringError(f"scales of the shape {list(distinct.shape)} are not those of {rows} rows")
        scales = distinct.repeat_interleave(rows // len(distinct), 0) if rows else distinct
        made = PackedLinear(packed, scales, rows, columns, entry.layout)
    return made


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
