"""A safetensors file, written tensor by tensor: no more than one is made for it at a time."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""The names of types in the format. A file has the tensors of the last of these first, those of one type by name."""

PLACES = {dtype: place for place, dtype in enumerate(TYPES)}


def write_tensors(
    path: Path,
    outlines: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a file, byte for byte as `safetensors.torch.save_file` does. Returns its SHA-256.

    outlines: the type and shape of each tensor, by name.
    tensor: gives that of a name; each is let go of before the next is asked for.
    Raises: OSError; ValueError for a tensor that is not as outlined.
    """
    order = sorted(outlines, key=lambda name: (-PLACES[outlines[name][0]], name.encode()))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        dtype, shape = outlines[name]
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            whole.update(part)
            file.write(part)
        for name in order:
            made = tensor(name).detach()
            if (made.dtype, tuple(made.shape)) != (outlines[name][0], tuple(outlines[name][1])):
                raise ValueError(f"{name} is {made.dtype} {tuple(made.shape)}, and not {outlines[name]}")
            if made.numel():
                content = made.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                whole.update(content)
                file.write(content)
    return whole.hexdigest()


def outlines_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The type and shape of each tensor."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def write_all(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """`write_tensors` of tensors that are there already."""
    return write_tensors(path, outlines_of(tensors), tensors.__getitem__, metadata)
