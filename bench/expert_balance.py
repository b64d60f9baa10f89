"""How evenly experts are used, by router and by the weight and scope of its balance loss, beside the held-out loss.

Each arm is the same small model of experts, trained by AdamW on the same windows for --steps steps, each of --parts micro-batches
of one window. On held-out windows the tokens of each expert are counted, layer by layer. Told are, as means over layers and seeds:
the load of the busiest expert over an even one (1: all alike; as many as there are experts: one has all), the share of experts that
get less than a tenth of an even load, and the loss in nats a token. Student's paired test judges losses against no balance loss, at
95 %.

    python bench/expert_balance.py --json expert-balance.json       # about 12 minutes on one core
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring import atomic
from shoestring.budget.machine import cache_folder, probe
from shoestring.compare.statistics import paired
from shoestring.config import build
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.schedule.wsd import WSD
from shoestring.train.evaluate import HELDOUT_ORDER
from shoestring.train.run_folder import environment

BASE = "token_choice, no balance loss"
ARMS: dict[str, dict[str, Any]] = {
    BASE: {"name": "token_choice", "balance": 0.0},
    "token_choice, 0.01": {"name": "token_choice"},
    "token_choice, 0.01, over the step": {"name": "token_choice", "scope": "batch"},
    "token_choice, 0.1": {"name": "token_choice", "balance": 0.1},
    "token_choice, 0.01, no z-loss": {"name": "token_choice", "z": 0.0},
    "sinkhorn": {"name": "sinkhorn"},
    "expert_choice": {"name": "expert_choice"},
    "pre_gate, 0.01": {"name": "pre_gate"},
}
CLIP = 1.0


def model_of(router: dict[str, Any], options: argparse.Namespace) -> Transformer:
    mixer = {"name": "moe", "experts": options.experts, "router": router}
    sizes = {"layers": options.layers, "width": options.width, "heads": options.width // 32}
    changes: dict[str, Any] = {"channel_mixer": mixer}
    if router["name"] == "pre_gate":  # the first layer leads all others
        follows = {**mixer, "router": {**router, "leads": False}}
        changes = {"channel_mixer": follows, "pattern": [{"at": "0", "channel_mixer": mixer}]}
    asked = {**sizes, "vocabulary": options.vocabulary, "context": options.context, **changes}
    return Transformer(build(ModelConfig, asked))


def train(model: Transformer, windows: Windows, options: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0)
    schedule, listening = WSD(), [module for module in model.modules() if hasattr(module, "begin_part")]
    model.train()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * schedule(step / options.steps)
        for part in range(options.parts):
            for module in listening:
                module.begin_part(part, None)  # type: ignore[operator]
            batch = windows.batch(step * options.parts + part, 1)
            reading = model.read(batch.inputs)
            loss = F.cross_entropy(reading.logits().flatten(0, 1), batch.targets.flatten())
            more = reading.auxiliary()
            ((loss if more is None else loss + more) / options.parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def judged(model: Transformer, windows: Windows, options: argparse.Namespace) -> dict[str, float]:
    """Means over the layers."""
    model.eval()
    loads: dict[str, Tensor] = {}
    loss = 0.0
    for number in range(options.windows):
        batch = windows.batch(number, 1)
        reading = model.read(batch.inputs)
        loss += float(F.cross_entropy(reading.logits().flatten(0, 1), batch.targets.flatten())) / options.windows
        for name, value in reading.notes.items():
            if name.endswith(".load"):
                loads[name] = loads.get(name, torch.zeros(())) + value.double()
    even = [load / load.mean() for load in loads.values()]
    return {
        "loss": loss,
        "busiest": mean(float(load.max()) for load in even),
        "idle": mean(float((load < 0.1).double().mean()) for load in even),
    }


def summed(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an arm."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    rows = []
    for name, own in by_arm.items():
        row: dict[str, Any] = {
            "arm": name,
            **{key: mean(run[key] for run in own.values()) for key in ("loss", "busiest", "idle")},
        }
        if name != BASE and len(own) > 1:
            said = paired([own[seed]["loss"] - by_arm[BASE][seed]["loss"] for seed in own], 0.95, 1.0)
            word = "none shown" if not said.shown else "better" if (said.difference or 0) < 0 else "worse"
            row |= {"difference": said.difference, "interval": said.interval, "verdict": word}
        rows.append(row)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {
        "steps": 150,
        "parts": 4,
        "layers": 4,
        "width": 64,
        "experts": 8,
        "context": 256,
        "vocabulary": 2048,
        "windows": 32,
    }
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--smallest", action="store_true", help="does it run? nothing that it prints is a measurement")
    options = parser.parse_args(words)
    if options.smallest:
        small = {"steps": 2, "parts": 2, "layers": 2, "width": 32, "context": 16, "vocabulary": 1024, "windows": 1}
        vars(options).update({**small, "seeds": [0]})
    torch.set_num_threads(1)
    dataset: Dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
    runs = []
    for seed in options.seeds:
        for name, router in ARMS.items():
            torch.manual_seed(seed)
            model = model_of(router, options)
            train(model, Windows(dataset.train, options.context, seed), options)
            found = judged(model, Windows(dataset.heldout, options.context, HELDOUT_ORDER), options)
            runs.append({"arm": name, "seed": seed, **found})
            print(f"{name}, seed {seed}: {found}", flush=True)
    rows = summed(runs)
    for row in rows:
        print(
            f"{row['arm']:36} {row['loss']:.4f}  busiest {row['busiest']:.2f}  idle {row['idle']:.0%}  {row.get('verdict', '')}"
        )
    if options.json:
        about = {"settings": {key: str(one) for key, one in vars(options).items()}, "environment": environment(probe())}
        atomic.write_text(options.json, json.dumps({**about, "arms": rows, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
