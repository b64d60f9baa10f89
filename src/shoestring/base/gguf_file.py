"""A GGUF file: its metadata, and its tensors one by one, in a memory that does not grow with the file.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. The `gguf` package reads it
too, but takes the numbers in a file's header at their word; here each is held against the size of the file.
"""

import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError, first_line

MAGIC = b"GGUF"

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of tensors that torch has."""

CHUNK = 1 << 16
"""Numbers of a tensor that are read and turned into floats at a time."""

_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
"""Types of numbers in the metadata, as numpy names them."""
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in the file.

    shape: as torch has it, rows first. type: as GGUF names it. start: its first byte in the file. size: its bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    size: int

    @property
    def numbers(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """What a file's header says. metadata: texts, numbers, lists of texts, arrays of numbers. tensors: by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def package() -> ModuleType:
    """The module gguf, which has the sizes and the formulas of GGUF's types. Raises: UsageError without it."""
    try:
        import gguf
    except ImportError:
        raise UsageError("opening a GGUF file needs the 'gguf' package: pip install 'shoestring[gguf]'") from None
    module: ModuleType = gguf
    return module


def read_header(path: Path) -> GGUFFile:
    """What the file at `path` holds. Raises: ShoestringError where it cannot be read, or is damaged or hostile."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(path, content).read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise ShoestringError(f"{path} cannot be read: {reason}") from None


class _Header:
    """Reads what comes before the tensors; every step is held against the size of the file."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.at = path, content, 0

    def read(self) -> GGUFFile:
        if self._take(4) != MAGIC:
            raise ShoestringError(f"{self.path} is no GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            other = "a big-endian file" if version & 0xFFFF == 0 else f"version {version} of the format"
            raise ShoestringError(f"{self.path} is {other}: versions 2 and 3, little-endian, are read")
        count, entries = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text()
            if key in metadata:
                raise self._damaged(f"'{key[:80]}' is there twice")
            metadata[key] = self._value(self._number("<I"))
        found = [self._described() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"an alignment of {str(alignment)[:20]}")
        first = -(-self.at // alignment) * alignment
        return GGUFFile(self.path, metadata, self._placed(found, first))

    def _placed(self, found: Iterable[tuple[str, tuple[int, ...], int, int]], first: int) -> dict[str, GGUFTensor]:
        """The tensors, each within the file and none over another."""
        gguf = package()
        sizes = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in found:
            if kind not in sizes:
                raise self._damaged(
                    f"the tensor '{name[:80]}' is of type {kind}, which the installed gguf package has not"
                )
            type_name, block, bytes_of_block = sizes[kind]
            if shape[-1] % block:
                raise self._damaged(
                    f"the tensor '{name[:80]}' has {shape[-1]} columns, no multiple of {type_name}'s {block}"
                )
            size = prod(shape) // block * bytes_of_block
            if offset > len(self.content) or first + offset + size > len(self.content):
                raise self._damaged(f"the tensor '{name[:80]}' of {size} bytes is beyond its end: it is cut short")
            if name in tensors:
                raise self._damaged(f"the tensor '{name[:80]}' is there twice")
            tensors[name] = GGUFTensor(name, shape, type_name, first + offset, size)
        end = first
        for one in sorted(tensors.values(), key=lambda one: one.start):
            if one.start < end:
                raise self._damaged(f"the tensor '{one.name[:80]}' lies over another")
            end = one.start + one.size
        return tensors

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, offset) of a tensor."""
        name, dimensions = self._text(), self._number("<I")
        if not 1 <= dimensions <= 4:
            raise self._damaged(f"the tensor '{name[:80]}' has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        if not all(1 <= size < 1 << 40 for size in shape):
            raise self._damaged(f"the tensor '{name[:80]}' has the shape {shape}")
        return name, shape, self._number("<I"), self._number("<Q")

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            inner, count = self._number("<I"), self._number("<Q")
            if inner == _TEXT:
                if count > (len(self.content) - self.at) // 8:
                    raise self._damaged(f"a list of {count} texts, for which it has no room")
                return [self._text() for _ in range(count)]
            dtype = self._dtype(inner)
            if count > (len(self.content) - self.at) // dtype.itemsize:
                raise self._damaged(f"a list of {count} numbers, for which it has no room")
            return np.frombuffer(self._take(count * dtype.itemsize), dtype)
        found = np.frombuffer(self._take(self._dtype(kind).itemsize), self._dtype(kind))
        return found[0].item()

    def _dtype(self, kind: int) -> np.dtype[Any]:
        if kind not in _NUMBERS:
            raise self._damaged(f"a value of the unknown type {kind}")
        return np.dtype(_NUMBERS[kind])

    def _text(self) -> str:
        try:
            return self._take(self._number("<Q")).decode()
        except UnicodeDecodeError:
            raise self._damaged("a text that is not UTF-8") from None

    def _number(self, form: str) -> int:
        found: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return found

    def _take(self, count: int) -> bytes:
        if count > len(self.content) - self.at:
            raise self._damaged("it is cut short")
        self.at += count
        return self.content[self.at - count : self.at]

    def _damaged(self, what: str) -> ShoestringError:
        return ShoestringError(f"{self.path} is damaged near byte {self.at}: {what}")


def read_tensor(file: GGUFFile, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor of the file in a floating type, read and converted a piece at a time.

    Raises: ShoestringError where it cannot be read, UsageError for a type that the gguf package cannot turn into floats.
    """
    stored = file.tensors[name]
    made = torch.empty(stored.shape, dtype=dtype)
    rows = made.view(-1, stored.shape[-1])
    at_once, row_bytes = max(1, CHUNK // stored.shape[-1]), stored.size // rows.shape[0]
    try:
        with open(file.path, "rb") as source:
            source.seek(stored.start)
            for start in range(0, rows.shape[0], at_once):
                part = rows[start : start + at_once]
                content = source.read(part.shape[0] * row_bytes)
                if len(content) < part.shape[0] * row_bytes:
                    raise ShoestringError(f"{file.path} was cut short while it was being read")
                part.copy_(_floats(content, stored, part.shape[0]))
    except OSError as error:
        raise ShoestringError(f"{file.path} cannot be read: {error.strerror}") from None
    return made


def read_bytes(file: GGUFFile, name: str) -> Tensor:
    """The bytes of a tensor of the file, uint8 [rows, bytes of a row]. Raises: ShoestringError where it cannot be read."""
    stored = file.tensors[name]
    try:
        with open(file.path, "rb") as source:
            source.seek(stored.start)
            content = source.read(stored.size)
    except OSError as error:
        raise ShoestringError(f"{file.path} cannot be read: {error.strerror}") from None
    if len(content) < stored.size:
        raise ShoestringError(f"{file.path} was cut short while it was being read")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(prod(stored.shape[:-1]), -1)


def _floats(content: bytes, stored: GGUFTensor, rows: int) -> Tensor:
    """[rows, columns] of some rows of a tensor."""
    if stored.type in PLAIN:
        return torch.frombuffer(bytearray(content), dtype=PLAIN[stored.type]).view(rows, -1)
    gguf = package()
    packed = np.frombuffer(content, np.uint8)[
        None
    ]  # as one row: the package takes rows in groups of 16, one after the other
    try:
        with np.errstate(all="ignore"):
            found = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[stored.type])
    except NotImplementedError:
        raise UsageError(
            f"'{stored.name}' in {stored.type} cannot be read: the gguf package does not turn that type into floats"
        ) from None
    return torch.from_numpy(found).view(rows, -1)
