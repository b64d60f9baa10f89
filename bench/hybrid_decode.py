"""Milliseconds of a token in models with running states: module by module, in one native call, and of many rows in one.

For each of --mixers a model of --layers layers, one in three of which attends, reads --past tokens in each of --rows rows. Then
one more is read, --rounds times, each way in turn: a row by itself module by module, and in the native call; all rows one after the
other, and joined in one call. Told are medians. 'attention' is the model whose layers all attend.

Times mean nothing while others use the machine.

    python bench/hybrid_decode.py --json hybrid-decode.json
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from shoestring import atomic, kernels
from shoestring.budget.machine import probe
from shoestring.config import build
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.kernels.choice import TORCH
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.train.run_folder import environment

PIECE = 512


def model_of(mixer: str, options: argparse.Namespace) -> Transformer:
    sizes = {"layers": options.layers, "width": options.width, "heads": options.width // 64, "vocabulary": 8192}
    sizes["context"] = options.past + 2 * options.rounds + 16
    attention = [{"at": "2::3", "token_mixer": "attention"}]
    torch.manual_seed(0)
    made = Transformer(build(ModelConfig, {**sizes, "token_mixer": mixer, "pattern": attention}))
    return made.to(getattr(torch, options.dtype)).eval()


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


@torch.inference_mode()
def sides(mixer: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of each way, in ms a token of a row."""
    model = model_of(mixer, options)
    ids = torch.randint(8192, (1, options.past), generator=torch.Generator().manual_seed(0))
    caches = [model.new_cache(1, model.config.context) for _ in range(options.rows)]
    for piece in ids.split(PIECE, 1):
        model.read(Inputs(piece), caches[0])
    start = caches[0].take(torch.tensor([0] * options.rows))
    caches = [start.take(torch.tensor([row])) for row in range(options.rows)]
    one, numbers = torch.tensor([[7]]), torch.arange(options.rows)[None]

    def alone(own: Sequence[Cache]) -> None:
        for cache in own:
            model.read(Inputs(one), cache).logits()

    def joined() -> None:
        cache = model.joined(caches, [1] * options.rows)
        if cache is None:
            raise SystemExit(f"{mixer}: no native call takes {options.rows} rows: {model.native}")
        model.read(Inputs(one.expand(1, options.rows), None, numbers), cache).logits()

    ways: dict[str, tuple[str | None, Callable[[], None], int]] = {
        "modules": (TORCH, lambda: alone(caches[:1]), 1),
        "native": (None, lambda: alone(caches[:1]), 1),
        "rows one by one": (None, lambda: alone(caches), options.rows),
        "rows joined": (None, joined, options.rows),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (kernel, work, rows) in ways.items():
            kernels.choose(kernel)
            times[name].append(timed(work) / rows)
            for cache in caches:  # the next way reads the same token
                cache.lengths = [options.past]
    return {"mixer": mixer, **{name: median(found) for name, found in times.items()}}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="+", default=["attention", "lightning", "mamba2", "gated_delta", "lolcats"])
    numbers = {"layers": 12, "width": 512, "past": 2048, "rows": 8, "rounds": 20, "threads": 2}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smallest", action="store_true", help="does it run? nothing that it prints is a measurement")
    options = parser.parse_args(words)
    if options.smallest:
        vars(options).update({"layers": 3, "width": 64, "past": 16, "rows": 2, "rounds": 2})
    torch.set_num_threads(options.threads)
    found = []
    for mixer in options.mixers:
        found.append(sides(mixer, options))
        print(
            "  ".join(f"{key} {one:.2f}" if isinstance(one, float) else one for key, one in found[-1].items()),
            flush=True,
        )
    if options.json:
        about = {
            "settings": {key: str(value) for key, value in vars(options).items()},
            "environment": environment(probe()),
        }
        atomic.write_text(options.json, json.dumps({**about, "sides": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
