"""Is choosing data worth what it takes? Curation, mixtures and selection against 'random, more epochs', at equal FLOPs or seconds.

The pool (`three_domains.py`) has three domains of unequal share; of each, half the text is clean, a quarter spoilt and a quarter
copies. All arms train the same small model on bytes, and are judged by the mean of the losses on clean held-out text of the three
domains. Every arm has the same budget in all: what scoring the pool, training a scorer, a reference or proxies, hearing losses and
choosing rows takes is taken off what is left to train with. 'random' trains on the whole pool, as many epochs as that allows.

--flops are counted: what hashing and linear scorers take is none worth counting. --seconds are of the processor, of one thread, in
place of FLOPs: there everything counts that an arm does, hashing included, but for libraries that are loaded before.

The options of the arms are those written here; nothing was tuned on the outcome. A seed draws the pool, the first weights and the
order. A verdict is drawn from three pairs or more, by Student's test of the paired differences, at 95 % without a correction for
there being many arms: of 20 arms that do nothing, one is expected to be shown.

Every run is a line of --out, and what is there is not run again.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_selection_arms import ARMS, PROXIES, PROXY, SCORER, World
from run_lines import RunLines
from three_domains import (
    HEARD,
    Budget,
    Size,
    make_pool,
    untimed_environment,
)

from shoestring import atomic
from shoestring.compare.statistics import LEAST_PAIRS, paired

CONFIDENCE = 0.95


def line_of(name: str, seed: int, options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    pool = make_pool(options.pool, options.heldout, options.trusted, seed)
    size = Size(options.layers, options.width, options.context, options.rows, options.lr)
    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(options.flops) if options.seconds is None else Budget(options.seconds, "seconds")
        found = ARMS[name](World(pool, size, budget, seed, Path(folder)))
    trained = found.trained
    return {
        "arm": name,
        "seed": seed,
        "loss": trained.loss,
        "losses": dict(trained.losses),
        "used": trained.used + (found.before if budget.unit == "flops" else 0),
        "before": found.before if budget.unit == "flops" else trained.before,
        "choosing": trained.chosen,
        "tokens": trained.tokens,
        "kept": found.kept,
        "weights": found.weights,
        "settings": settings,
    }


def verdicts(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm against 'random', paired by seed."""
    base = {line["seed"]: line["loss"] for line in lines if line["arm"] == "random"}
    found = []
    for name in [name for name in ARMS if name != "random"]:
        own = {line["seed"]: line for line in lines if line["arm"] == name and line["seed"] in base}
        if not own:
            continue
        test = paired([line["loss"] - base[seed] for seed, line in own.items()], CONFIDENCE, max(base.values()))
        shown = "better" if (test.difference or 0) < 0 else "worse"
        verdict = shown if test.shown else "no difference shown"
        found.append(
            {
                "arm": name,
                "pairs": test.pairs,
                "difference": test.difference,
                "interval": test.interval,
                "minimum_detectable_effect": test.minimum_detectable_effect,
                "share_not_trained": float(
                    np.mean([(line["before"] + line["choosing"]) / line["used"] for line in own.values()])
                ),
                "verdict": verdict if test.pairs >= LEAST_PAIRS else f"none: {test.pairs} of {LEAST_PAIRS} pairs",
            }
        )
    return found


def jobs(options: argparse.Namespace, lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """What is not made yet: all arms of one seed before the next."""
    made = {(line["arm"], line["seed"]) for line in lines}
    for seed in options.seeds:
        for name in options.arms:
            if (name, seed) not in made:
                yield name, seed


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=3.5e11, help="of each arm in all (default 3.5e11)")
    parser.add_argument("--seconds", type=float, help="of each arm in all, of one thread, in place of FLOPs")
    parser.add_argument("--pool", type=int, default=100_000, help="characters (default 100,000)")
    parser.add_argument("--heldout", type=int, default=12_000, help="characters of each domain (default 12,000)")
    parser.add_argument("--trusted", type=int, default=5000, help="characters of each domain (default 5,000)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="of a batch (default 16)")
    parser.add_argument("--lr", type=float, default=4e-3, help="one for all arms (default 0.004)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/data-selection.jsonl"), help="a line for each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write runs and verdicts there")
    parser.add_argument("--smallest", action="store_true", help="a run of seconds that shows that everything works")
    options = parser.parse_args(words)
    tiny = {
        "flops": 4e9,
        "pool": 10_000,
        "heldout": 600,
        "trusted": 600,
        "layers": 1,
        "width": 32,
        "context": 16,
        "rows": 4,
    }
    if options.smallest:
        vars(options).update(tiny, seeds=[0])
    if options.seconds is not None:
        torch.set_num_threads(1)
        options.flops = None
    keys = ("flops", "seconds", "pool", "heldout", "trusted", "layers", "width", "context", "rows", "lr")
    settings: dict[str, Any] = {key: getattr(options, key) for key in keys}
    settings.update(python=sys.version.split()[0], scorer=SCORER, proxies=[PROXIES, PROXY], heard=HEARD)
    runs = RunLines(options.out, settings)
    warmed = set[str]()
    for name, seed in jobs(options, runs.lines):
        if options.seconds is not None and name not in warmed:  # libraries are loaded by a run that does not count
            line_of(name, seed, argparse.Namespace(**{**vars(options), **tiny, "seconds": None}), {})
            warmed.add(name)
        line = line_of(name, seed, options, settings)
        runs.add(line)
        print(f"seed {seed}  {name:24} loss {line['loss']:.4f}  {line['tokens']:,} tokens", flush=True)
    found = verdicts(runs.lines)
    for one in found:
        gap = "" if one["interval"] is None else f" [{one['interval'][0]:+.4f}, {one['interval'][1]:+.4f}]"
        print(f"{one['arm']:24} {one['difference']:+.4f}{gap}  {one['share_not_trained']:5.1%}  {one['verdict']}")
    if options.json:
        runs_alone = [{key: value for key, value in line.items() if key != "settings"} for line in runs.lines]
        content = {"settings": settings, "verdicts": found, "runs": runs_alone, "environment": untimed_environment()}
        atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
