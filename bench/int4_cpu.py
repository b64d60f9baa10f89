"""Products with matrices of 4 and 8 bits in groups of 32 columns on this CPU, beside torch, onnxruntime and llama.cpp.

As `ternary_cpu.py`: sides take turns in each round, each with copies of its matrix that the caches do not hold; medians of the
rounds, ratios to our 4 bits, and the share of the bandwidth at which torch sums a buffer in the same round. A side that is not
installed is left out, which is said; `llama_q4_0` is ggml's (ggml_side.py). With --json each product is kept as it is measured:
the same command goes on where it was stopped, on the same machine. --seconds ends it before a product that would begin later.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ggml_side import q4_0
from ternary_cpu import measure, shape_of, show
from ternary_sides import Shape

from shoestring import atomic, kernels
from shoestring.budget.machine import probe
from shoestring.errors import UsageError
from shoestring.train.run_folder import environment

SIDES = ("groups_int4", "groups_int8", "bf16", "fp32", "torch_int4", "int8_weights", "onnx4", "llama_q4_0")


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["4096x4096", "4096x14336"], help="rows x columns")
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 8, 32, 128], help="default 1 8 32 128")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2], help="default 1 2")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES, help="ratios are over the first")
    parser.add_argument("--rounds", type=int, default=9, help="of all sides, default 9")
    parser.add_argument("--rotate", type=int, default=128 << 20, help="bytes of copies of each matrix, default 128 MiB")
    parser.add_argument(
        "--kernel", help="of ours, default the fastest here: torch, plain, avx2, avx512_vnni, avx512_vbmi"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which none begins; default none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options = parser.parse_args(words)
    options.onnx_block = 32
    try:
        options.sizes = [shape_of(text) for text in options.shapes]
        kernels.choose(options.kernel)
    except (ValueError, UsageError) as error:
        parser.error(str(error))
    sizes = [side for size in options.sizes for side in size]
    if options.rounds < 1 or not options.sides or min([*options.tokens, *options.threads, *sizes], default=1) < 1:
        parser.error("--rounds, --tokens, --threads and the sides of --shapes are at least 1, and --sides are some")
    return options


def main(words: Sequence[str]) -> None:
    options, begun = read(words), time.monotonic()
    torch.manual_seed(0)
    print(f"kernel: {kernels.kernel_in_use()} {kernels.reason()}".rstrip())
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        about = _about(options, environment(probe("cpu", cache=Path(scratch), fresh=True)))
        found = _kept(options.json, about)
        for (rows, columns), tokens, threads in itertools.product(options.sizes, options.tokens, options.threads):
            place = {"threads": threads, "rows": rows, "columns": columns, "tokens": tokens}
            if any(one["place"] == place for one in found):
                print(f"\n{rows} x {columns}, {tokens} tokens, {threads} threads: measured before")
                continue
            if time.monotonic() - begun >= options.seconds:
                print(f"\nthe time is over before {rows} x {columns}, {tokens} tokens: the same command goes on there")
                break
            torch.set_num_threads(threads)
            shape = Shape(rows, columns, tokens)
            measured = measure(shape, options.sides, options, {"llama_q4_0": q4_0})
            show(shape, threads, measured)
            found.append({"place": place, "threads": threads, **measured})
            if options.json:
                atomic.write_text(options.json, json.dumps({**about, "products": found}))


def _about(options: argparse.Namespace, machine: Any) -> dict[str, Any]:
    """What all products have in common, as JSON has it."""
    left = ("json", "sizes", "seconds", "shapes", "tokens", "threads")
    settings = {key: value for key, value in vars(options).items() if key not in left}
    told = {"settings": settings, "environment": machine, "kernel": kernels.kernel_in_use()}
    known: dict[str, Any] = json.loads(json.dumps(told))
    return known


def _kept(path: Path | None, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The products that were measured before, with these settings and by this kernel."""
    if path is None or not path.exists():
        return []
    found: dict[str, Any] = json.loads(path.read_text())
    if any(found[key] != about[key] for key in ("settings", "kernel")):
        raise SystemExit(f"{path} is of other settings, or another kernel: name another file")
    products: list[dict[str, Any]] = found["products"]
    return products


if __name__ == "__main__":
    main(sys.argv[1:])
