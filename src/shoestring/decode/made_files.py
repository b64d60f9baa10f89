"""Files of what was made for a decoding method: tensors, and a few values beside them, in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shoestring import atomic
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json

FORMAT = "shoestring-decode"


def write_made(path: Path, method: str, tensors: Mapping[str, Tensor], **values: Any) -> None:
    """Write what was made for the method of this name. values: as JSON holds them."""
    metadata = {"format": FORMAT, "method": method, "values": json.dumps(values)}
    atomic.write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def read_made(path: Path, method: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, values) as they were written. Raises: UsageError where the file is none of this method."""
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the file that was made for '{method}'") from None
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if metadata.get("format") != FORMAT or metadata.get("method") != method:
        raise UsageError(f"{path} was not made for '{method}'")
    try:
        values = parse_json(metadata.get("values", "").encode())
    except NotJson as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is damaged: its values are no table")
    return tensors, values


def expect(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises: UsageError where a tensor is missing or of another shape; a size of -1 may be any."""
    for name, shape in shapes.items():
        found = tensors.get(name)
        if found is None:
            raise UsageError(f"{path} has no tensor '{name}'")
        same = len(found.shape) == len(shape) and all(s in (-1, f) for f, s in zip(found.shape, shape, strict=True))
        if not same:
            raise UsageError(f"{path}: '{name}' is {list(found.shape)}, and {list(shape)} is needed")
