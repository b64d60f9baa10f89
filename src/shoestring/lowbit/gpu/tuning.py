"""Finding a kernel's settings for the shapes of a model on the GPU at hand: each candidate is checked, then timed."""

import logging
from collections.abc import Iterable
from statistics import median

import torch
import triton
from torch import Tensor

from shoestring.lowbit.gpu import launch, plain, table
from shoestring.lowbit.gpu.config import Config, candidates
from shoestring.lowbit.gpu.order import Order
from shoestring.lowbit.gpu.table import Key
from shoestring.lowbit.gpu.timing import Captured, cache_bytes, rotated
from shoestring.lowbit.packing import integer

log = logging.getLogger(__name__)

MOST = 2 << 30
"""Bytes that the copies of a matrix take at most."""


def tune(wanted: Iterable[Key], device: torch.device) -> dict[Key, Config]:
    """The fastest settings for each product, kept in the user's cache folder for this GPU.

    What was found is logged, and any candidate that is left out: it asks for more than the GPU has, or its sums are wrong.
    """
    found: dict[Key, Config] = {}
    names = set[str]()
    for key in wanted:
        if key.name not in names:
            names.add(key.name)
            with torch.cuda.device(device):
                found[key] = _fastest(key, device)
            table.keep(torch.cuda.get_device_name(device), {key: found[key]})
    return found


def matrices(key: Key, device: torch.device, count: int) -> list[launch.GpuMatrix]:
    """Matrices of random numbers."""
    scales = torch.full((key.rows, key.groups), key.columns**-0.5, device=device)
    if key.bits == 2:
        order = Order(key.rows, key.columns, key.groups)
        made = torch.randint(-(2**15), 2**15, (count, *order.shape), dtype=torch.int16, device=device)
        return [launch.ternary(words, scales, order) for words in made]
    width, kind = (key.columns, torch.int8) if key.bits == 8 else (integer.row_bytes(key.columns), torch.uint8)
    made = torch.randint(-128, 128, (count, key.rows, width), dtype=torch.int8, device=device).view(kind)
    return [launch.integers(weights, scales, key.rows, key.columns, key.bits) for weights in made]


def _fastest(key: Key, device: torch.device) -> Config:
    one = matrices(key, device, 1)[0]
    held = matrices(key, device, rotated(one.words.nbytes, cache_bytes(device), MOST))
    held *= -(-8 // len(held))
    x = torch.randn(key.tokens, key.columns, device=device).bfloat16()
    wanted = reference(x, held[0], key).float()
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    times: dict[Config, float] = {}
    for config in candidates(key.rows, one.blocks, key.tokens, key.groups > 1, processors):
        try:
            sums = launch.product(x, held[0], config).float()
            if not torch.allclose(sums, wanted, rtol=2**-7, atol=2**-7):
                log.warning(
                    f"{key.name}: {config} gives wrong sums, by {float((sums - wanted).abs().max()):.3g}; left out"
                )
                continue
            captured = Captured([lambda m=matrix, c=config: launch.product(x, m, c) for matrix in held])  # type: ignore[misc]
        except triton.OutOfResources as error:
            log.info(f"{key.name}: {config} is left out: {error}")
            continue
        captured.seconds()
        times[config] = median(captured.seconds() for _ in range(7))
    best = min(times, key=lambda config: times[config])
    log.info(f"{key.name}: {1e6 * times[best]:.1f} us with {best}")
    return best


def reference(x: Tensor, matrix: launch.GpuMatrix, key: Key) -> Tensor:
    """The product in plain torch."""
    if key.bits == 2:
        return plain.ternary(x, matrix.words, matrix.scales, Order(key.rows, key.columns, key.groups))
    weights = matrix.words.view(torch.int8) if key.bits == 8 else matrix.words
    return plain.integers(x, weights, matrix.scales, key.columns, key.bits)
