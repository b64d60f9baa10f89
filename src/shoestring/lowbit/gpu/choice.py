"""Whether the Triton kernels can be used on a GPU, tried once for each, and which settings a product takes."""

import importlib.util
import subprocess
import warnings

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.lowbit.gpu.config import Config, untuned
from shoestring.lowbit.gpu.order import Order, reorder
from shoestring.lowbit.gpu.table import Key, tuned
from shoestring.lowbit.packing import pack

CAPABILITY = (8, 0)
"""The least: tensor cores with bfloat16 and asynchronous copies, from Ampere on."""

_trouble: dict[int, str] = {}


def trouble(device: torch.device) -> str:
    """Why the Triton kernels cannot be used on this GPU; '' where they can. Tried once, on a small matrix.

    Raises: ShoestringError where that would have to be while a CUDA graph is captured.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _trouble:
        if torch.cuda.is_current_stream_capturing():
            raise ShoestringError("run packed matrices once before a CUDA graph is captured: kernels are made then")
        _trouble[index] = _found(torch.device("cuda", index))
        if _trouble[index]:
            warnings.warn(
                f"packed matrices are computed with plain torch on this GPU: {_trouble[index]}; it is slow",
                RuntimeWarning,
                stacklevel=3,
            )
    return _trouble[index]


def kernel_in_use(device: torch.device | None = None) -> tuple[str, str]:
    """('triton' or 'torch', why it is torch, for the user to read), of a GPU, by default the current one."""
    why = trouble(device or torch.device("cuda"))
    return ("torch", why) if why else ("triton", "")


def config(device: torch.device, key: Key, blocks: int) -> Config:
    """The settings that tuning found for a product on this GPU, else those by rule."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    found = tuned(torch.cuda.get_device_name(device), key)
    return found or untuned(key.rows, blocks, key.tokens, key.groups > 1, processors)


def _found(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA's GPUs and were never tried on AMD's"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0, which the kernels need"
    import triton

    try:
        with torch.cuda.device(device):
            return "" if _sums_are_right(device) else "the compiled kernel gives wrong sums, which should be reported"
    except (RuntimeError, OSError, subprocess.SubprocessError, triton.TritonError) as error:
        return f"Triton cannot compile for it: {' '.join(str(error).split())[:300]}"


def _sums_are_right(device: torch.device) -> bool:
    """Whether both kernels, with and without splits, give the exact sums of a matrix and of integers that bfloat16 holds."""
    from shoestring.lowbit.gpu import launch

    rows, columns = 80, 9 * 256
    column = torch.arange(columns, device=device)
    codes = ((torch.arange(rows, device=device)[:, None] * 5 + column * 7) % 3 - 1).to(torch.int8)
    x = (column * torch.arange(1, 4, device=device)[:, None] % 17 - 8).bfloat16()
    order = Order(rows, columns)
    words = reorder(pack(codes, "ternary2"), order, "ternary2")
    matrix = launch.ternary(words, torch.full((rows, 1), 0.5, device=device), order)
    wanted = (x.double() @ codes.double().t() * 0.5).float()
    settings = (Config("narrow", 64, 4, 3, 1), Config("narrow", 64, 4, 3, 2), Config("wide", 64, 4, 3, 2))
    found: list[Tensor] = [launch.product(x.float(), matrix, setting) for setting in settings]
    return all(torch.equal(sums, wanted) for sums in found)
