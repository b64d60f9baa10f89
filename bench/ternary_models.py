"""Whole models on this CPU, random weights: reading a prompt and continuing it, ours packed beside torch's and llama.cpp's.

Each side reads a prompt of --prompts tokens from an empty cache ('prefill': until its first new token is known) and, after
the longest, goes on for --tokens tokens, one at a time ('decode'). The sides take turns in every round, in an order that turns
too. Printed: the median of the rounds, in tokens a second, and as ratio the median of the rounds' own ratios of seconds, that
side over the first. 'bytes' are those of the file, or of the weights in memory where there is none.

All sides have the same ternary numbers in their blocks: torch's dense ones as floats, llama.cpp's from our GGUF export (TQ2_0,
TQ1_0) or from its own conversion of that (Q4_0 and F16, embedding and head too). Ours and the ternary files have embedding
and head at 8 bits. llama.cpp keeps its cache in float16, ours is float32. llama.cpp is left out where it is not installed
(pip install llama-cpp-python, compiled on installation), which is said.
"""

import argparse
import gc
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from model_sides import Side, Sides

from shoestring import atomic
from shoestring.budget.machine import cache_folder, probe
from shoestring.data.config import DataConfig
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError
from shoestring.lowbit import kernels
from shoestring.model.config import ModelConfig
from shoestring.train.run_folder import environment

VOCABULARY, CONTEXT = 32000, 512
MODELS = {
    "100M": ModelConfig(12, 768, 12, hidden=2048, vocabulary=VOCABULARY, context=CONTEXT),
    "400M": ModelConfig(18, 1280, 20, hidden=3584, vocabulary=VOCABULARY, context=CONTEXT),
}
SIDES = ("ternary2", "ternary1.6", "bf16", "fp32", "int8_dynamic", "TQ2_0", "TQ1_0", "Q4_0", "F16")
PAUSE = 0.1
"""Seconds between two sides: threads that spin after a call have gone to sleep by then."""


def once(side: Side, prompt: list[int], count: int) -> list[float]:
    """Seconds until each of `count` new tokens, each from the one before."""
    taken, began = [], time.perf_counter()
    for _ in side.tokens(prompt, count):
        now = time.perf_counter()
        taken.append(now - began)
        began = now
    return taken


def measure(sides: dict[str, Side], options: argparse.Namespace) -> dict[str, Any]:
    """Seconds by what is done, side and round."""
    prompts = {f"prefill {n}": [(7 * i) % 1000 for i in range(n)] for n in sorted(options.prompts)}
    longest = list(prompts)[-1]
    seconds: dict[str, dict[str, list[float]]] = {what: {name: [] for name in sides} for what in (*prompts, "decode")}
    order = list(sides)
    for number in range(options.rounds + 1):  # the first is not counted
        for name in order[number % len(order) :] + order[: number % len(order)]:
            for what, prompt in prompts.items():
                time.sleep(PAUSE)
                taken = once(sides[name], prompt, 1 + options.tokens * (what == longest))
                if number:
                    seconds[what][name].append(taken[0])
                    if what == longest:
                        seconds["decode"][name].append(median(taken[1:]))
    return {what: {name: figures(each, name) for name in each} for what, each in seconds.items()}


def figures(seconds: dict[str, list[float]], name: str) -> dict[str, Any]:
    first = next(iter(seconds.values()))
    ratios = sorted(theirs / ours for theirs, ours in zip(seconds[name], first, strict=True))
    return {
        "ms": 1e3 * median(seconds[name]),
        "ratio": {"median": median(ratios), "least": ratios[0], "most": ratios[-1]},
        "seconds": seconds[name],
    }


def show(title: str, found: dict[str, Any], sides: dict[str, Side]) -> None:
    print(f"\n{title}")
    print(f"{'':14}{'MB':>8}" + "".join(f"{what + ', tokens/s':>22}{'ratio':>20}" for what in found))
    for name in sides:
        line = f"{name:14}{sides[name].bytes / 1e6:8.0f}"
        for what, each in found.items():
            tokens = int(what.split()[1]) if " " in what else 1
            ratio = each[name]["ratio"]
            spread = f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"
            line += f"{1e3 * tokens / each[name]['ms']:22.1f}{spread:>20}"
        print(line)


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=tuple(MODELS))
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES, help="ratios are over the first")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2], help="default 1 2")
    parser.add_argument("--prompts", nargs="*", type=int, default=[32, 128], help="tokens, default 32 128")
    parser.add_argument("--tokens", type=int, default=24, help="to decode after the longest prompt, default 24")
    parser.add_argument("--rounds", type=int, default=5, help="of all sides, default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options = parser.parse_args(words)
    if min([options.rounds, options.tokens, *options.prompts, *options.threads]) < 1:
        parser.error("--rounds, --tokens, --prompts and --threads are at least 1")
    if max(options.prompts) + options.tokens > CONTEXT:
        parser.error(f"prompt and tokens are at most {CONTEXT} together")
    torch.manual_seed(0)
    tokenizer = prepare(DataConfig(vocabulary=1024), cache_folder()).tokenizer
    print(f"kernel: {kernels.kernel_in_use()} {kernels.reason()}".rstrip())
    found, left_out = [], dict[str, str]()
    with tempfile.TemporaryDirectory() as scratch:
        machine = probe("cpu", cache=Path(scratch), fresh=True)
        for model in options.models:
            files = Path(scratch) / model
            files.mkdir()
            for threads in options.threads:
                torch.set_num_threads(threads)
                with ExitStack() as stack:
                    made, sides = Sides(MODELS[model], tokenizer, threads, files, stack), dict[str, Side]()
                    for name in options.sides:
                        try:
                            sides[name] = made.builds()[name]()
                        except UsageError as error:
                            left_out[name] = str(error)
                    measured = measure(sides, options)
                    count = sum(p.numel() for p in made.model.parameters())
                    show(f"{model} ({count:,} parameters), {threads} thread{'s' * (threads > 1)}", measured, sides)
                    sizes = {name: side.bytes for name, side in sides.items()}
                    found.append({"model": model, "threads": threads, "bytes": sizes, "times": measured})
                    del made, sides
                gc.collect()
        for name, why in left_out.items():
            print(f"{name} is left out: {why}")
        if options.json:
            settings = {key: value for key, value in vars(options).items() if key != "json"}
            content = {"settings": settings, "environment": environment(machine), "kernel": kernels.kernel_in_use()}
            atomic.write_text(options.json, json.dumps(content | {"left_out": left_out, "models": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
