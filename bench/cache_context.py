"""The largest context that fits into so much memory, by the way the cache is held: from the figures of caches.py.

Bytes of an arm's cache are a line in the length of the text, through its shortest and its longest length there. Memory is the
weights of --place in --dtype and the cache: activations are left out, as they do not grow with the text where a pass is bounded. A
model reads no more than its context (docs/caches.md), so what lies beyond is room for several texts.

    python bench/caches.py --json caches.json
    python bench/cache_context.py caches.json --figure docs/cache-context.svg
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shoestring.base import open_model
from shoestring.errors import UsageError
from shoestring.report.drawing import COLOUR, SERIES, name_axes, panel, save, style

GIB = 2**30
MEMORY = (1, 2, 4)


def gathered(paths: Sequence[Path]) -> dict[str, Any]:
    """By length: the arms of all files."""
    found = dict[str, Any]()
    for path in paths:
        for length, one in json.loads(path.read_text())["lengths"].items():
            found.setdefault(length, {"arms": {}})["arms"].update(one["arms"])
    return found


def line(lengths: Mapping[str, Any], arm: str) -> tuple[float, float]:
    """(bytes, bytes a token) of an arm's cache."""
    sizes = sorted((int(length), float(found["arms"][arm]["bytes"])) for length, found in lengths.items())
    (short, least), (long_, most) = sizes[0], sizes[-1]
    each = (most - least) / (long_ - short)
    return least - each * short, each


def contexts(lengths: Mapping[str, Any], weights: int, memory: Sequence[float]) -> dict[str, list[int]]:
    """By arm: tokens that fit into each memory, in GiB, beside the weights."""
    found = dict[str, list[int]]()
    for arm in next(iter(lengths.values()))["arms"]:
        if not all(arm in one["arms"] for one in lengths.values()):
            continue
        fixed, each = line(lengths, arm)
        if each > 0:
            found[arm] = [max(0, int((size * GIB - weights - fixed) / each)) for size in memory]
    return found


@style()
def draw(found: Mapping[str, Sequence[int]], context: int, target: Path) -> None:
    """Write `target`, an SVG: a row for each arm, those that hold most at the top."""
    arms = sorted(found, key=lambda arm: found[arm][-1])
    figure, axes = panel(820, 60 + 20 * len(arms), left=150, right=24, top=40)
    axes.set_xscale("log")
    for column, (size, series) in enumerate(zip(MEMORY, SERIES, strict=False)):
        held = [found[arm][column] for arm in arms]
        axes.plot(held, range(len(arms)), "o", color=COLOUR[series], markersize=5.5, label=f"{size} GiB")
    axes.axvline(context, color=COLOUR["muted"], linewidth=1)
    ticks = [digit * 10**power for power in range(3, 7) for digit in (1, 2, 5)]
    low, high = axes.get_xlim()
    axes.set_xticks(shown := [tick for tick in ticks if low <= tick <= high], [f"{tick:,}" for tick in shown])
    axes.minorticks_off()
    axes.set_yticks(range(len(arms)), arms)
    axes.legend(loc="lower right", frameon=False, ncols=len(MEMORY))
    name_axes(axes, "tokens", f"tokens that fit beside the weights; the line is the model's own context, {context:,}")
    with open(target, "wb") as file:
        save(figure, file, "svg")


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, nargs="*", help="JSON files of caches.py, of two lengths at least")
    parser.add_argument("--place", default="smollm2", help="the model that it measured")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="an SVG")
    parser.add_argument("--smallest", action="store_true", help="of sizes that nobody measured: does it run?")
    options = parser.parse_args(words)
    if options.smallest:
        lengths: dict[str, Any] = {str(size): {"arms": {"plain": {"bytes": 1000 * size}}} for size in (10, 20)}
    else:
        lengths = gathered(options.figures)
    if len(lengths) < 2:
        raise UsageError("name files that caches.py wrote, of two --lengths at least")
    model: Any = open_model(options.place, getattr(torch, options.dtype)).model
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    found = contexts(lengths, weights, MEMORY)
    print(f"{'':24}" + "".join(f"{f'{size} GiB':>12}" for size in MEMORY))
    for arm, held in found.items():
        print(f"{arm:24}" + "".join(f"{tokens:>12,}" for tokens in held))
    if options.figure:
        draw(found, model.about.context, options.figure)


if __name__ == "__main__":
    main(sys.argv[1:])
