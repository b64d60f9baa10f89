"""Products with packed ternary matrices on this CPU: ours at 2 and 1.6 bits beside torch and onnxruntime.

1. products: one linear layer, y [tokens, rows] = x [tokens, columns] times a matrix, at 1 token (decoding) and 32 and 128
(prefill), for each number of threads. Each side has its matrix several times over, --rotate bytes in all, more than the
caches hold, and takes the copies in turn. The sides take turns in each round, in an order that turns too, with a pause
between them so that threads that still spin after one side's call do not disturb the next. Of each round the
median call counts; printed are the median of the rounds and, as ratio, the median of the rounds' own ratios, that side over
ours at 2 bits. 'GB/s' is bytes of weights and scales over seconds, and '%' the median of the rounds' shares of the bandwidth at
which torch sums a buffer of --rotate bytes with as many threads, in the same round: a machine that others share has another
bandwidth every minute. All tensors lie in large pages where the system gives them.
Activations are rounded to int8 within ours and `int8_dynamic`; those of `bf16` and `int8_weights` come in bfloat16.
onnxruntime is charged nothing for its call (ternary_sides.py) and chooses its own arithmetic.

2. heads: a table of --head-rows x --head-columns at 8 and 4 bits beside bfloat16, one token.

The kernel is the fastest that runs here, or --kernel. onnxruntime is left out where it is not installed, which is said.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import torch
from ternary_sides import Build, Shape, sides

from shoestring import atomic
from shoestring.budget.machine import probe, timed
from shoestring.errors import UsageError
from shoestring.lowbit import kernels
from shoestring.train.run_folder import environment

PRODUCTS = ("ternary2", "ternary1.6", "bf16", "fp32", "int8_dynamic", "int8_weights", "onnx2")
HEADS = ("ours_int8", "ours_int4", "bf16")
PAUSE = 0.005
"""Seconds between two sides."""


def shape_of(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)


def measure(
    shape: Shape, names: Sequence[str], options: argparse.Namespace, more: Mapping[str, Build] = MappingProxyType({})
) -> dict[str, Any]:
    """Seconds of a product for each side and round, and what follows from them. The first name is what ratios are over.

    more: sides beside those of `ternary_sides`.
    """
    builds, built, left_out = {**sides(options.onnx_block), **more}, {}, {}
    for name in names:
        try:
            built[name] = builds[name](shape, options.rotate)
        except UsageError as error:
            left_out[name] = str(error)
    seconds: dict[str, list[float]] = {name: [] for name in built}
    order, bandwidths, buffer = list(built), list[float](), kernels.gather([torch.ones(options.rotate // 4)])[0]
    for number in range(options.rounds + 1):  # the first is not counted: memory is touched, kernels are chosen
        for name in order[number % len(order) :] + order[: number % len(order)]:
            time.sleep(PAUSE)
            taken = []
            for call in built[name].calls:
                began = time.perf_counter()
                call()
                taken.append((time.perf_counter() - began) / built[name].products)
            if number:
                seconds[name].append(median(taken))
        time.sleep(PAUSE)
        reading = timed(buffer.sum, seconds=0.0)
        if number:
            bandwidths.append(4 * buffer.numel() / reading)
    found: dict[str, Any] = {}
    for name, side in built.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(seconds[name], seconds[names[0]], strict=True))
        shares = [side.bytes / taken / bandwidth for taken, bandwidth in zip(seconds[name], bandwidths, strict=True)]
        found[name] = {
            "ms": 1e3 * median(seconds[name]),
            "ratio": {"median": median(ratios), "least": ratios[0], "most": ratios[-1]},
            "bytes": side.bytes,
            "bytes_per_second": side.bytes / median(seconds[name]),
            "share_of_bandwidth": median(shares),
            "copies": len(side.calls) * side.products,
            "seconds": seconds[name],
        }
    return {"shape": vars(shape), "read_bandwidth": median(bandwidths), "sides": found, "left_out": left_out}


def show(shape: Shape, threads: int, found: dict[str, Any]) -> None:
    print(f"\n{shape}, {threads} thread{'s' * (threads > 1)}, reading at {found['read_bandwidth'] / 1e9:.1f} GB/s")
    print(f"{'':14}{'ms':>10}{'ratio to the first':>28}{'GB/s':>9}{'%':>7}")
    for name, side in found["sides"].items():
        ratio = side["ratio"]
        spread = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
        rate, share = side["bytes_per_second"] / 1e9, 100 * side["share_of_bandwidth"]
        print(f"{name:14}{side['ms']:10.3f}{spread:>28}{rate:9.1f}{share:7.0f}")
    for name, why in found["left_out"].items():
        print(f"  {name} is left out: {why}")


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["4096x4096", "4096x14336"], help="rows x columns")
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 32, 128], help="default 1 32 128")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2], help="default 1 2")
    parser.add_argument(
        "--sides", nargs="*", default=list(PRODUCTS), choices=PRODUCTS, help="ratios are over the first"
    )
    parser.add_argument("--rounds", type=int, default=9, help="of all sides, default 9")
    parser.add_argument("--rotate", type=int, default=128 << 20, help="bytes of copies of each matrix, default 128 MiB")
    parser.add_argument("--head-rows", type=int, default=32768, help="0 for no heads")
    parser.add_argument("--head-columns", type=int, default=1024)
    parser.add_argument(
        "--onnx-block", type=int, default=128, help="columns that share a scale in onnxruntime, default 128"
    )
    parser.add_argument(
        "--kernel", help="of ours, default the fastest here: torch, plain, avx2, avx512_vnni, avx512_vbmi"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options = parser.parse_args(words)
    try:
        options.sizes = [shape_of(text) for text in options.shapes]
        kernels.choose(options.kernel)
    except (ValueError, UsageError) as error:
        parser.error(str(error))
    if (
        options.rounds < 1
        or min([*options.tokens, *options.threads, *(side for size in options.sizes for side in size)], default=1) < 1
    ):
        parser.error("--rounds, --tokens, --threads and the sides of --shapes are at least 1")
    return options


def main(words: Sequence[str]) -> None:
    options = read(words)
    torch.manual_seed(0)
    print(f"kernel: {kernels.kernel_in_use()} {kernels.reason()}".rstrip())
    found: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        torch.no_grad(),
    ):  # its own cache: nothing measured at another time is used
        machine = probe("cpu", cache=Path(scratch), fresh=True)
        wanted = [
            (Shape(rows, columns, tokens), options.sides)
            for rows, columns in options.sizes
            for tokens in options.tokens
            if options.sides
        ]
        if options.head_rows:
            wanted.append((Shape(options.head_rows, options.head_columns, 1), HEADS))
        for shape, names in wanted:
            for threads in options.threads:
                torch.set_num_threads(threads)
                measured = measure(shape, names, options)
                show(shape, threads, measured)
                found.append({"threads": threads, **measured})
                gc.collect()
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "sizes")}
        content = {
            "settings": settings,
            "environment": environment(machine),
            "kernel": kernels.kernel_in_use(),
            "products": found,
        }
        atomic.write_text(options.json, json.dumps(content))


if __name__ == "__main__":
    main(sys.argv[1:])
