"""Products with packed ternary matrices on a GPU, and decoding with them: ours (Triton, 2 bits) beside torch in bfloat16.

1. checks: the kernels against float64 at odd shapes, groups of columns, each type of activations; the bench ends at a wrong sum.

2. tuning: the settings of the kernels for each shape below, kept in the user's cache folder; --no-tune takes what is there.

3. products: y [tokens, rows] = x [tokens, columns] times a matrix, x in bfloat16, at the matrices of a layer of models' shapes
(printed; gpu_models.py has them), the queries', keys' and values' as one and the gate's with the feed-forward's first. A side's
calls are one CUDA graph over copies of its matrix that are three times the L2 cache, so that neither launching nor the cache
counts. The sides take turns; printed are the medians of the rounds and, as ratio, the median of the rounds' own ratios,
bfloat16 over ours. 'roof' is the time that copying takes for as many bytes (weights, scales, x and y) over the time of the
product: the share of the memory roofline. The matrix product of torch is cuBLAS's, with the settings it chooses.

4. decoding: one token after the other, batch 1, with random weights of a model's shape: norms, rotary positions, attention over
a cache of --context places, all of which are read, and the likeliest token, as one CUDA graph. Ours has an output head of
--head-bits bits and a bfloat16 embedding; the other side is bfloat16 throughout. Activations are bfloat16 on both sides, rounded
to int8 on neither. Tokens mean nothing here. A side that does not fit in memory is left out, which is said.

Without a GPU it says so and ends with 2. All of it takes some ten minutes, most of them to compile and try settings.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_models import SHAPES, Decoder, Head, Shape, dense, ternary
from torch import Tensor

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.lowbit import gpu
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.gpu import timing
from shoestring.lowbit.gpu.config import token_block
from shoestring.lowbit.gpu.operators import ordered_matmul
from shoestring.lowbit.gpu.table import Key
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.train.run_folder import environment

CHECKED = (
    (40, 300, 1, "ternary2"),
    (4096, 4096, 1, "ternary1.6"),
    (333, 11008, 86, "ternary2"),
    (70, 600, 3, "ternary1.6"),
)
"""rows, columns, groups, layout."""

ROUNDING = {torch.float32: 2.0**-20, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SUMMING = 2.0**-14
"""Of the sum of the absolute products: what adding up in float32, in tensor cores, may be off."""


def check(device: torch.device, tokens: Sequence[int]) -> int:
    """How many products were right. Raises: SystemExit at the first wrong one."""
    chance, count = torch.Generator().manual_seed(0), 0
    for rows, columns, groups, layout in CHECKED:
        codes = torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=chance)
        quantised = Quantised(codes, torch.rand(rows, groups, generator=chance) + 0.1)
        layer = PackedLinear.of(quantised, layout).to(device)
        weight = quantised.dequantise().double().to(device)
        for kind, rounding in ROUNDING.items():
            for number in tokens:
                x = torch.randn(number, columns, generator=chance).to(device, kind)
                wanted = x.double() @ weight.t()
                allowed = rounding * wanted.abs() + SUMMING * (x.double().abs() @ weight.abs().t())
                wrong = (layer(x).double() - wanted).abs() > allowed
                if bool(wrong.any()):
                    print(
                        f"wrong: {layout} {rows} x {columns}, {groups} groups, {number} tokens, {kind}: {int(wrong.sum())}"
                    )
                    raise SystemExit(1)
                count += 1
    return count


def products(rows: int, columns: int, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a product of each side and round, and what follows from them."""
    torch.cuda.empty_cache()
    device, cache = options.gpu, timing.cache_bytes(options.gpu)
    x = torch.randn(tokens, columns, device=device).bfloat16()
    shared = x.nbytes + 2 * tokens * rows
    order = gpu.Order(rows, columns)
    scales = torch.full((rows, 1), columns**-0.5, device=device)
    sizes = {
        "ternary": 2 * order.strips * order.blocks * 16 * order.run + scales.nbytes,
        "bfloat16": 2 * rows * columns,
    }
    room = torch.cuda.mem_get_info(device)[0] // 3
    captured: dict[str, timing.Captured] = {}
    for name, size in sizes.items():
        count = timing.rotated(size, cache, room)
        if size > room:
            continue
        if name == "ternary":
            words = torch.randint(-(2**15), 2**15, (count, *order.shape), dtype=torch.int16, device=device)
            calls = [calling(ordered_matmul, x, one, scales, rows, columns) for one in words]
        else:
            held = torch.randn(count, rows, columns, dtype=torch.bfloat16, device=device)
            calls = [calling(torch.matmul, x, one.t()) for one in held]
        captured[name] = timing.Captured(calls * -(-options.calls // len(calls)))
    seconds: dict[str, list[float]] = {name: [] for name in captured}
    for number in range(options.rounds + 1):  # the first is not counted
        for name, graph in captured.items():
            taken = graph.seconds()
            if number:
                seconds[name].append(taken)
    found: dict[str, Any] = {"rows": rows, "columns": columns, "tokens": tokens, "sides": {}}
    for name, times in seconds.items():
        roof = (sizes[name] + shared) / options.bandwidth
        found["sides"][name] = {"us": 1e6 * median(times), "roof": roof / median(times), "seconds": times}
    if len(seconds) == 2:
        found["ratio"] = median(
            theirs / ours for theirs, ours in zip(seconds["bfloat16"], seconds["ternary"], strict=True)
        )
    return found


def calling(function: Callable[..., Tensor], *arguments: object) -> timing.Call:
    return lambda: function(*arguments)


def decode(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a token of both sides, in turns where both fit in memory at once."""
    torch.cuda.empty_cache()
    device = options.gpu
    builds: dict[str, Callable[[], Decoder]] = {
        "ternary": lambda: Decoder(
            shape,
            lambda rows, columns: ternary(rows, columns, device),
            Head(shape.vocabulary, shape.width, options.head_bits, device),
            options.context,
            device,
        ),
        "bfloat16": lambda: Decoder(
            shape,
            lambda rows, columns: dense(rows, columns, device),
            dense(shape.vocabulary, shape.width, device),
            options.context,
            device,
        ),
    }
    whole = {"ternary": shape.weights() / 4, "bfloat16": 2 * shape.weights() + 2 * shape.vocabulary * shape.width}
    found: dict[str, Any] = {"source": shape.source, "weights": shape.weights(), "sides": {}, "left_out": {}}
    for name, build in builds.items():
        free = torch.cuda.mem_get_info(device)[0]
        if 1.3 * whole[name] + (3 << 30) > free:
            found["left_out"][name] = (
                f"it needs about {1.3 * whole[name] / 2**30 + 3:.0f} GiB, and {free / 2**30:.0f} are free"
            )
            continue
        decoder = build()
        graph = timing.Captured([decoder.step])
        graph.seconds()
        times = [median(graph.seconds() for _ in range(options.steps)) for _ in range(options.rounds)]
        read = sum(one.nbytes for one in decoder.state_dict().values()) + decoder.cache.nbytes
        found["sides"][name] = {
            "ms": 1e3 * median(times),
            "tokens_per_second": 1 / median(times),
            "bytes": read,
            "roof": read / options.bandwidth / median(times),
            "seconds": times,
        }
        del graph, decoder
        torch.cuda.empty_cache()
    if len(found["sides"]) == 2:
        found["ratio"] = found["sides"]["bfloat16"]["ms"] / found["sides"]["ternary"]["ms"]
    return found


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=list(SHAPES), choices=list(SHAPES), help="whose matrices; default all"
    )
    parser.add_argument(
        "--tokens", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32, 64], help="default 1 2 4 8 16 32 64"
    )
    parser.add_argument(
        "--decode", nargs="*", default=["1B", "3B", "7B"], choices=list(SHAPES), help="default 1B 3B 7B"
    )
    parser.add_argument("--rounds", type=int, default=9, help="of all sides, default 9")
    parser.add_argument("--calls", type=int, default=20, help="products in a graph at least, default 20")
    parser.add_argument("--steps", type=int, default=32, help="tokens of a round of decoding, default 32")
    parser.add_argument("--context", type=int, default=512, help="places of the decoder's cache, default 512")
    parser.add_argument("--head-bits", type=int, default=8, choices=[4, 8], help="of our output head, default 8")
    parser.add_argument("--no-tune", action="store_true", help="take the settings that are kept, else those by rule")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, GPU and every figure there")
    options = parser.parse_args(words)
    if min([options.rounds, options.calls, options.steps, options.context, *options.tokens]) < 1:
        parser.error("--rounds, --calls, --steps, --context and --tokens are at least 1")
    return options


def main(words: Sequence[str]) -> int:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read(words)
    if not torch.cuda.is_available():
        print("there is no GPU that torch can use here: nothing was checked or timed", file=sys.stderr)
        return 2
    options.gpu = torch.device("cuda", torch.cuda.current_device())
    name, (kernel, why) = torch.cuda.get_device_name(options.gpu), gpu.kernel_in_use(options.gpu)
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}; kernel: {kernel} {why}".rstrip())
    torch.manual_seed(0)
    with torch.no_grad():
        print(f"{check(options.gpu, [1, 3, 16, 17, 64, 65, 300])} products are right")
        options.bandwidth = timing.copy_bandwidth(options.gpu)
        print(f"copying reads and writes {options.bandwidth / 1e9:.0f} GB/s together")
        report: dict[str, Any] = {
            "gpu": name,
            "kernel": kernel,
            "bandwidth": options.bandwidth,
            "products": {},
            "decode": {},
        }
        if kernel == "triton" and not options.no_tune:
            report["tuned"] = tune(options)
        for model in options.models:
            print(f"\n{model} ({SHAPES[model].source}), microseconds")
            print(f"{'matrix':24}{'tokens':>7}{'ours':>9}{'roof':>7}{'bf16':>9}{'roof':>7}{'ratio':>8}")
            rows = []
            for label, (height, width) in SHAPES[model].matrices().items():
                for tokens in options.tokens:
                    rows.append({"matrix": label} | products(height, width, tokens, options))
                    show(rows[-1])
            report["products"][model] = rows
        for model in options.decode:
            report["decode"][model] = found = decode(SHAPES[model], options)
            for side, values in found["sides"].items():
                print(
                    f"decoding {model}, {side}: {values['ms']:.3f} ms a token, {100 * values['roof']:.0f} % of the roof"
                )
            for side, reason in found["left_out"].items():
                print(f"decoding {model}, {side} is left out: {reason}")
            if "ratio" in found:
                print(f"decoding {model}: {found['ratio']:.2f} times as fast as bfloat16")
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        report |= {"settings": settings, "environment": environment(probe("cuda"))}
        atomic.write_text(options.json, json.dumps(report, indent=1) + "\n")
    return 0


def tune(options: argparse.Namespace) -> dict[str, str]:
    from shoestring.lowbit.gpu.tuning import tune as fastest

    shapes = {size for model in options.models + options.decode for size in SHAPES[model].matrices().values()}
    full = {1} | {token_block(tokens) for tokens in options.tokens if tokens > 1}
    keys = [Key(*size, 1, tokens) for size in sorted(shapes) for tokens in sorted(full)]
    heads = {(SHAPES[model].vocabulary, SHAPES[model].width) for model in options.decode}
    keys += [Key(*size, 1, 1, options.head_bits) for size in sorted(heads)]
    return {key.name: str(config) for key, config in fastest(keys, options.gpu).items()}


def show(found: dict[str, Any]) -> None:
    label = f"{found['matrix']} {found['rows']}x{found['columns']}"
    cells = ""
    for side in ("ternary", "bfloat16"):
        one = found["sides"].get(side)
        cells += f"{one['us']:9.1f}{100 * one['roof']:6.0f}%" if one else f"{'no room':>16}"
    print(f"{label:24}{found['tokens']:7}{cells}" + (f"{found['ratio']:8.2f}" if "ratio" in found else ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
