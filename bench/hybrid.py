"""Models that are mostly linear, with few layers of attention: from scratch at equal seconds, and made of one that exists.

--scratch: of each of --mixers with attention in every third and every sixth layer the bytes of cache and state at --past tokens and
milliseconds of one more are measured, untrained. Chosen is the fastest that holds at most --bytes of what the dense model does and
takes no longer a token; where none does, the table says so, and the fastest within the bytes is taken. It and the dense model are
trained for --seconds each, from each of --seeds, in turns, at windows of --context tokens, and judged on held-out text in such
windows: all of it, and the last quarter of each window alone.

--convert PLACE: some layers of a model become linear by recipes/linearise/lolcats.toml, and heal for --budget. Told beside the
original: held-out loss, milliseconds a token and bytes of cache and state at --past tokens.

Times mean nothing while others use the machine.

    python bench/hybrid.py --scratch --seconds 300 --json hybrid-scratch.json
    python bench/hybrid.py --convert smollm2 --budget 15m --out runs/hybrid --json hybrid-smollm2.json
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from architectures import serving, train
from torch.nn import functional as F

from shoestring import atomic
from shoestring.base import open_model
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import build
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.train.evaluate import HELDOUT_ORDER
from shoestring.train.run_folder import environment
from shoestring.tune.merging import merge_adapters

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "linearise" / "lolcats.toml"
EVERY = (3, 6)
DENSE = "dense"
FACTOR = 1.0
"""On the optimisers' own learning rates, for all."""


def candidates(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each changes of the dense model."""
    found: dict[str, dict[str, Any]] = {DENSE: {}}
    for mixer in options.mixers:
        for every in EVERY:
            attention = {"at": f"{every - 1}::{every}", "token_mixer": "attention"}
            found[f"{mixer}, attention in 1 of {every}"] = {"token_mixer": mixer, "pattern": [attention]}
    return found


def model_of(changes: dict[str, Any], options: argparse.Namespace, vocabulary: int) -> Transformer:
    sizes = {"layers": options.layers, "width": options.width, "heads": options.width // 32, "vocabulary": vocabulary}
    context = max(options.context, options.past + options.tokens)
    return Transformer(build(ModelConfig, {**sizes, "context": context, **changes}))


def chosen(sides: dict[str, dict[str, Any]], share: float) -> tuple[str, bool]:
    """(the fastest of those that hold at most this share of the dense model's bytes, whether it is as fast as that)."""
    dense = sides[DENSE]
    small = {
        name: one for name, one in sides.items() if name != DENSE and one["state_bytes"] <= share * dense["state_bytes"]
    }
    if not small:
        raise SystemExit(f"no candidate holds at most {share:.0%} of the dense model's bytes: raise --bytes")
    best = min(small, key=lambda name: float(small[name]["ms_a_token"]))
    return best, small[best]["ms_a_token"] <= dense["ms_a_token"]


@torch.no_grad()
def judged(model: Transformer, windows: Windows, count: int) -> dict[str, float]:
    """Nats a token of held-out windows, and of the last quarter of each."""
    model.eval()
    whole = late = 0.0
    for number in range(count):
        batch = windows.batch(number, 1)
        each = F.cross_entropy(model(batch.inputs.values).flatten(0, 1), batch.targets.flatten(), reduction="none")
        whole, late = whole + float(each.mean()) / count, late + float(each[-len(each) // 4 :].mean()) / count
    return {"loss": whole, "last_quarter": late}


def from_scratch(options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """The choice, and the losses of the chosen hybrid and the dense model."""
    sides, ways = dict[str, dict[str, Any]](), candidates(options)
    for name, changes in ways.items():
        torch.manual_seed(0)
        sides[name] = serving(model_of(changes, options, dataset.tokenizer.vocabulary), options.past, options.tokens)
        one = sides[name]
        print(f"{name:32} {one['ms_a_token']:8.2f} ms a token, {one['state_bytes']:>12,} bytes", flush=True)
    best, fast = chosen(sides, options.bytes)
    print(f"chosen: {best}{'' if fast else ', though a token takes longer than the dense model takes'}")
    runs, held = list[dict[str, Any]](), Windows(dataset.heldout, options.context, HELDOUT_ORDER)
    for seed in options.seeds:
        for name in (DENSE, best):
            torch.manual_seed(seed)
            model = model_of(ways[name], options, dataset.tokenizer.vocabulary)
            own = argparse.Namespace(**{**vars(options), "seed": seed, "heldout_windows": 1, "flops": 1.0})
            _, steps = train(model, FACTOR, own, dataset, options.seconds)
            runs.append({"arm": name, "seed": seed, "steps": steps, **judged(model, held, options.windows)})
            print(
                f"{name}, seed {seed}: {runs[-1]['loss']:.4f}, last quarter {runs[-1]['last_quarter']:.4f}", flush=True
            )
    return {"serving": sides, "chosen": best, "as_fast": fast, "runs": runs}


def shoestring(*words: object) -> str:
    """What a command prints. Raises: SystemExit with what it said, where it failed."""
    command = [sys.executable, "-m", "shoestring", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def converted(options: argparse.Namespace) -> dict[str, Any]:
    """The model and its hybrid side by side."""
    out: Path = options.out
    began = time.monotonic()
    if not (out / "summary.json").exists():
        words = ["--model.base", options.convert, "--budget", options.budget, f"--model.context={options.window}"]
        words += [f"--edits.lolcats.at={options.at}", *options.more.split()]
        shoestring("train", RECIPE, *words, "--out", out)
    found = dict[str, Any](at=options.at, seconds=time.monotonic() - began)
    places = {"original": options.convert, "hybrid": str(out)}
    asked = ["--context", options.window, "--tokens", options.judged, "--json"]
    losses = json.loads(shoestring("evaluate", *places.values(), *asked))
    found["evaluated"] = losses
    for name, place in places.items():
        model = open_model(place, torch.float32).model
        assert isinstance(model, Transformer)
        merge_adapters(model)  # as `generate` and `serve` do
        # what is timed is further on than either was trained for: with tables of positions for it
        model.config = replace(model.config, context=options.past + options.tokens)
        model.make_rotaries()
        found[name] = serving(model, options.past, options.tokens)
        one = found[name]
        print(
            f"{name:10} {one['ms_a_token']:8.2f} ms a token, {one['state_bytes']:>12,} bytes at {options.past}",
            flush=True,
        )
    print(json.dumps(losses)[:2000])
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", action="store_true", help="a hybrid from scratch against the dense model")
    parser.add_argument("--convert", metavar="PLACE", help="a hybrid of a model that exists")
    parser.add_argument("--mixers", nargs="+", default=["lightning", "mamba2", "gated_delta"])
    parser.add_argument("--bytes", type=float, default=0.5, help="of the dense model's cache, at most (default 0.5)")
    parser.add_argument("--seconds", type=float, default=300, help="of training, each (default 300)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    numbers = {"layers": 6, "width": 128, "context": 2048, "batch": 2, "vocabulary": 2048, "windows": 16}
    numbers |= {"past": 8192, "tokens": 16, "window": 512, "judged": 8192}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--at", default="2::3", help="layers that become linear (default 2::3)")
    parser.add_argument("--budget", default="15m", help="of converting and healing (default 15m)")
    parser.add_argument("--more", default="", help="more words for that run, as one string")
    parser.add_argument("--out", type=Path, default=Path("runs/hybrid"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smallest", action="store_true", help="does it run? nothing that it prints is a measurement")
    options = parser.parse_args(words)
    if options.smallest:
        small = {"width": 32, "context": 32, "vocabulary": 1024, "windows": 1, "past": 24, "tokens": 2, "seconds": 0.2}
        vars(options).update({**small, "seeds": [0], "mixers": ["lightning"], "scratch": True, "bytes": 1e9})
    if not (options.scratch or options.convert):
        parser.error("say --scratch, --convert PLACE, or both")
    found: dict[str, Any] = {}
    if options.scratch:
        dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
        found["scratch"] = from_scratch(options, dataset)
    if options.convert:
        found["converted"] = converted(options)
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        about = {"settings": settings, "environment": environment(probe())}
        atomic.write_text(options.json, json.dumps({**about, **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
