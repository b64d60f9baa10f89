"""Tensors in safetensors files, whole or in parts: read when they are asked for, and of each no more than is asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shoestring.errors import ShoestringError, first_line
from shoestring.model.safetensors_writer import TYPES
from shoestring.parallel.region import Region, overlaps, shape_of, whole_region

AT_ONCE = 16 << 20
"""Bytes that are read of a file before it is opened anew, which lets go of the pages of memory that it was read into."""

BY_NAME = {name: dtype for dtype, name in TYPES.items()}
"""The types of tensors, by their names in the format."""


@dataclass(frozen=True)
class StoredPart:
    """A part of a tensor. file: that has it. name: it has there. region: which part."""

    file: Path
    name: str
    region: Region


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in files. dtype, shape: of the whole. pieces: which part each file has."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[StoredPart, ...]


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name. The files stay where they are until the last was read."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        self.stored = dict(stored)
        self._file: Path | None = None
        self._source: Any = None
        self._taken = 0

    @classmethod
    def of_file(cls, file: Path) -> "StoredTensors":
        """All that one file has. Raises: ShoestringError where it holds no tensors."""
        return cls(
            {
                name: StoredTensor(*one, (StoredPart(file, name, whole_region(one[1])),))
                for name, one in outline(file).items()
            }
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor. Raises: KeyError; ShoestringError where it cannot be read."""
        return self.part(name, whole_region(self.stored[name].shape))

    def part(self, name: str, region: Region) -> Tensor:
        """A part of a tensor: nothing else of it is read. Raises: KeyError; ShoestringError where it cannot be read."""
        one = self.stored[name]
        found, filled = torch.empty(shape_of(region), dtype=one.dtype), 0
        for piece in one.pieces:
            for into, out_of in overlaps(region, piece.region):
                block = found[into]
                block.copy_(self._read(piece, out_of))
                filled += block.numel()
        if filled != found.numel():
            files = ", ".join(piece.file.name for piece in one.pieces)
            raise ShoestringError(f"{name[:80]} is not whole in {files}: {filled} of {found.numel()} numbers are there")
        return found

    def under(self, prefix: str) -> "StoredTensors":
        """Those whose names begin so, by what follows."""
        found = {name.removeprefix(prefix): one for name, one in self.stored.items() if name.startswith(prefix)}
        return StoredTensors(found)

    def _read(self, piece: StoredPart, where: tuple[slice, ...]) -> Tensor:
        file, name = piece.file, piece.name
        if self._source is None or file != self._file or self._taken > AT_ONCE:
            self._source, self._file, self._taken = _opened(file), file, 0
        try:
            found: Tensor = self._source.get_slice(name)[where] if where else self._source.get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError, IndexError) as error:
            raise ShoestringError(f"{file}: the tensor '{name[:80]}' cannot be read: {first_line(error)}") from None
        self._taken += found.numel() * found.element_size()
        return found


def outline(file: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """(type, shape) of each tensor of a file. Raises: ShoestringError where it holds none, or of a type that is not known."""
    source, found = _opened(file), {}
    for name in source.keys():  # noqa: SIM118, no dict
        part = source.get_slice(name)
        kind = str(part.get_dtype())
        if kind not in BY_NAME:
            raise ShoestringError(f"{file} holds no tensors: '{name[:80]}' is of the type {kind}")
        found[name] = BY_NAME[kind], tuple(part.get_shape())
    return found


def part_of(tensors: Mapping[str, Tensor], name: str, region: Region) -> Tensor:
    """A part of a tensor that is stored, or here."""
    if isinstance(tensors, StoredTensors):
        return tensors.part(name, region)
    whole = tensors[name]
    found = torch.empty(shape_of(region), dtype=whole.dtype, device=whole.device)
    for into, out_of in overlaps(region, whole_region(whole.shape)):
        found[into] = whole[out_of]
    return found


def under(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """The tensors whose names begin so, by what follows; what is stored is not read yet."""
    if isinstance(tensors, StoredTensors):
        return tensors.under(prefix)
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def pieces_of(content: Any, where: Path, files: frozenset[str]) -> dict[str, StoredTensor]:
    """Tensors as an index lists them. where: the index. files: that may be named.

    Raises: ShoestringError where it is no such list, or a file has not what it says.
    """
    found, outlines = {}, dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]]()
    if not isinstance(content, dict):
        raise ShoestringError(f"{where} is damaged: it does not list tensors by name")
    for name, one in content.items():
        try:
            dtype, shape = BY_NAME[one["dtype"]], tuple(map(_size, one["shape"]))
            pieces, total = [], 0
            for each in one["in"]:
                region = tuple(tuple((_size(a), _size(b)) for a, b in runs) for runs in each["at"])
                if len(region) != len(shape) or any(
                    not a < b <= size for runs, size in zip(region, shape, strict=True) for a, b in runs
                ):
                    raise ValueError
                if each["file"] not in files:
                    raise ValueError
                if each["file"] not in outlines:
                    outlines[each["file"]] = outline(where.parent / each["file"])
                if outlines[each["file"]][name] != (dtype, shape_of(region)):
                    raise ValueError
                pieces.append(StoredPart(where.parent / each["file"], name, region))
                total += prod(shape_of(region))
        except (KeyError, TypeError, ValueError):
            raise ShoestringError(
                f"{where} is damaged: where the parts of '{name[:80]}' are is not what the files have"
            ) from None
        if total != prod(shape):
            raise ShoestringError(
                f"{where} is damaged: the parts of '{name[:80]}' are {total} of {prod(shape)} numbers"
            )
        found[name] = StoredTensor(dtype, shape, tuple(pieces))
    return found


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise ValueError
    return value


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ShoestringError(f"{file} holds no tensors: {first_line(error)}") from None
