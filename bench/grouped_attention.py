"""One token that attends to many, in bfloat16 on one core: torch's kernel for grouped heads beside `contract.grouped_attention`.

    python bench/grouped_attention.py --json grouped-attention.json

Milliseconds of one layer of SmolLM2's sizes (9 heads of queries, 3 of keys, 64 numbers each), in turns, the median of rounds.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.contract.grouped_attention import grouped_attention
from shoestring.train.run_folder import environment

HEADS, SHARED, WIDTH = 9, 3, 64


def measure(keys: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each way."""
    torch.manual_seed(0)
    shapes = (HEADS, 1), (SHARED, keys), (SHARED, keys)
    q, k, v = (torch.randn(1, *shape, WIDTH).bfloat16() for shape in shapes)
    ways: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "ours": lambda: grouped_attention(q, k, v),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first is not counted
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            took[name].append(1e3 * (time.perf_counter() - began))
    return {name: median(times[1:]) for name, times in took.items()}


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    found = {str(keys): measure(keys, options.rounds) for keys in options.keys}
    for keys, times in found.items():
        print(
            f"{keys:>6} keys: torch {times['torch']:.3f} ms, ours {times['ours']:.3f}, {times['torch'] / times['ours']:.1f} times"
        )
    if options.json:
        about = {"rounds": options.rounds, "environment": environment(probe())}
        atomic.write_text(options.json, json.dumps({**about, "milliseconds": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
