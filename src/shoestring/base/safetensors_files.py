"""The weights of a transformers folder: safetensors files, one or several, read tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.json_files import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
"""Files of weights of other kinds, some of which run code as they are opened."""

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

AT_ONCE = 16 << 20
"""Bytes that are read of a file before it is opened anew, which lets go of the pages of memory that it was read into."""


@dataclass(frozen=True)
class SafetensorsTensor:
    """A tensor in a file. shape: its sizes. type: as safetensors names it. size: bytes."""

    name: str
    file: Path
    shape: tuple[int, ...]
    type: str
    size: int

    @property
    def numbers(self) -> int:
        return prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that belong to its model.

    Raises: UsageError where there are none, ShoestringError where the index of several is damaged or names files elsewhere.
    """
    index = read_json(folder / INDEX, dict, "an object") if (folder / INDEX).exists() else None
    if index is None:
        if (folder / WHOLE).is_file():
            return [folder / WHOLE]
        others = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        there = (
            f"{others[0]} is not opened, as such files can run code: convert it to safetensors" if others else "none"
        )
        raise UsageError(f"{folder} has no weights that are taken: {WHOLE}, or {INDEX} and its files ({there})")
    named = index.get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ShoestringError(f"{folder / INDEX} is damaged: it has no weight_map")
    files = [folder / name for name in sorted(set(named.values()))]
    for file in files:
        if file.parent != folder or file.suffix != ".safetensors" or file.name in ("", ".."):
            raise ShoestringError(
                f"{folder / INDEX} names '{file.name[:80]}', which is no safetensors file of the folder"
            )
        if not file.is_file():
            raise UsageError(f"{file} is not there, and {INDEX} names it: the copy is not whole")
    if not files:
        raise ShoestringError(f"{folder / INDEX} names no file")
    return files


def outline(files: list[Path]) -> dict[str, SafetensorsTensor]:
    """What the files hold, by name. Raises: ShoestringError where one cannot be read, or a tensor is there twice."""
    found: dict[str, SafetensorsTensor] = {}
    for file in files:
        with _opened(file) as source:
            for name in source.keys():  # noqa: SIM118, no dict
                part = source.get_slice(name)
                shape, kind = tuple(part.get_shape()), str(part.get_dtype())
                if name in found:
                    raise ShoestringError(f"{file}: the tensor '{name[:80]}' is in {found[name].file.name} too")
                width = FLOATS[kind].itemsize if kind in FLOATS else 1
                found[name] = SafetensorsTensor(name, file, shape, kind, prod(shape) * width)
    return found


def tensors(stored: dict[str, SafetensorsTensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all, as they are in the files.

    The largest come first: whoever copies them has let go of them before the copy of the whole has grown. Then file by file.
    """
    whole = sum(one.size for one in stored.values())
    last = sorted(stored.values(), key=lambda one: (-one.size if 16 * one.size >= whole else 0, one.file, one.name))
    source: Any = None
    file, taken = Path(), 0
    for one in last:
        if source is None or file != one.file or taken + one.size > AT_ONCE:
            source, file, taken = _opened(one.file), one.file, 0
        taken += one.size
        try:
            tensor = source.get_tensor(one.name)
        except (SafetensorError, RuntimeError, ValueError, AttributeError) as error:
            raise ShoestringError(
                f"{one.file}: the tensor '{one.name[:80]}' cannot be read: {first_line(error)}"
            ) from None
        if taken >= AT_ONCE:
            source = None
        yield one.name, tensor
        del tensor


def common_type(stored: dict[str, SafetensorsTensor]) -> torch.dtype:
    """The type that most numbers have."""
    counts: dict[torch.dtype, int] = {}
    for one in stored.values():
        kind = FLOATS.get(one.type, torch.float32)
        counts[kind] = counts.get(kind, 0) + one.numbers
    found = max(counts, key=lambda kind: counts[kind], default=torch.float32)
    return torch.float32 if found == torch.float64 else found


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise ShoestringError(f"{file} cannot be read: {first_line(error)}") from None
