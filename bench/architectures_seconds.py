"""The most promising parts of `model/` at equal seconds: those of the least loss at equal FLOPs, by the lines of architectures.py.

Each arm is trained for --seconds with the learning rates that were its best there, from each of --seeds, arms in turns, on as many
threads as --threads says. A seed sets the weights and the order of the text for all. Held-out losses are judged by Student's paired
test against 'dense', at 95 %. Equal seconds mean nothing on a machine that does other things: run it alone.

    python bench/architectures.py --flops 1e12 --out runs/architectures.jsonl
    python bench/architectures_seconds.py runs/architectures.jsonl --seconds 60 --out runs/architectures-seconds.jsonl

Every run is a line of --out, and what is there is not run again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from architectures import configuration, train
from run_lines import RunLines

from shoestring import atomic
from shoestring.budget.machine import cache_folder, probe
from shoestring.compare.statistics import LEAST_PAIRS, paired
from shoestring.data.config import DataConfig
from shoestring.data.prepare import prepare
from shoestring.model.transformer import Transformer
from shoestring.train.run_folder import environment

BASE = "dense"
CONFIDENCE = 0.95


def promising(lines: Sequence[dict[str, Any]], count: int) -> dict[str, float]:
    """The factor on learning rates of so many arms of the least loss, and of the base, which is first."""
    best = {line["arm"]: float(min(line["losses"], key=line["losses"].get)) for line in lines}
    order = [line["arm"] for line in sorted(lines, key=lambda line: float(line["loss"])) if line["arm"] != BASE]
    return {name: best[name] for name in (BASE, *order[:count])}


def verdicts(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm's mean loss, and what its paired differences from the base show; the least loss first."""
    losses: dict[str, dict[int, float]] = {}
    for run in runs:
        losses.setdefault(run["arm"], {})[run["seed"]] = run["loss"]
    found = []
    for name, own in losses.items():
        row: dict[str, Any] = {"arm": name, "loss": mean(own.values()), "seeds": len(own)}
        pairs = [own[seed] - losses[BASE][seed] for seed in own if seed in losses.get(BASE, {})]
        if name != BASE:
            said = paired(pairs, CONFIDENCE, 1.0)
            word = "no difference shown"
            if said.pairs < LEAST_PAIRS:
                word = "too few pairs"
            elif said.shown and said.difference is not None:
                word = "better" if said.difference < 0 else "worse"
            row |= {"difference": said.difference, "interval": said.interval, "verdict": word}
        found.append(row)
    return sorted(found, key=lambda row: float(row["loss"]))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, nargs="?", help="of architectures.py")
    parser.add_argument("--top", type=int, default=10, help="arms beside 'dense' (default 10)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="not 0, which the rates were tried with"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/architectures-seconds.jsonl"), help="default %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine, runs and verdicts there")
    parser.add_argument("--smallest", action="store_true", help="only to see that it works")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    if options.smallest:
        made = {
            "layers": 3,
            "width": 32,
            "context": 32,
            "batch": 2,
            "vocabulary": 1024,
            "heldout_windows": 2,
            "flops": 1.0,
        }
        shape: dict[str, Any] = {**made, "contexts": [8], "tokens": 2, "ngrams": 512, "seed": 0}
        lines: list[dict[str, Any]] = [
            {"arm": name, "loss": 1.0, "losses": {"1.0": 1.0}} for name in (BASE, "lightning")
        ]
        options.seconds, options.seeds = 0.2, [1]
    elif options.lines is None:
        parser.error("name the file of architectures.py")
    else:
        lines = [json.loads(line) for line in options.lines.read_text().splitlines()]
        shape = lines[0]["settings"]
    arms = promising(lines, options.top)
    settings = {**shape, "seconds": options.seconds, "threads": options.threads}
    runs = RunLines(options.out, settings)
    made_before = {(line["arm"], line["seed"]) for line in runs.lines}
    dataset = prepare(DataConfig(vocabulary=shape["vocabulary"]), cache_folder())
    for seed in options.seeds:
        for name, factor in arms.items():
            if (name, seed) in made_before:
                continue
            own = argparse.Namespace(**{**shape, "seed": seed})
            torch.manual_seed(seed)
            model = Transformer(configuration(name, own, dataset))
            loss, steps = train(model, factor, own, dataset, options.seconds)
            runs.add({"arm": name, "seed": seed, "factor": factor, "loss": loss, "steps": steps, "settings": settings})
            print(f"{name}, seed {seed}: {loss:.4f} after {steps} steps", flush=True)
    judged = verdicts(runs.lines)
    for row in judged:
        print(f"{row['arm']:28} {row['loss']:.4f}  {row.get('verdict', '')}")
    if options.json:
        about = {"settings": settings, "machine": environment(probe())}
        atomic.write_text(options.json, json.dumps({**about, "runs": runs.lines, "verdicts": judged}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
