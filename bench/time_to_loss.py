"""Time to a loss: `shoestring train` against a plain nanoGPT-style recipe, on the embedded corpus.

Measured: the held-out loss of the baseline after --seconds of wall-clock (T, 120), and of `shoestring train --budget` half
of that (T/2), for each seed; with --equal-time also of the full T; with --ladder at several budgets, of which the smallest
whose final loss is at or below the baseline's gives the ratio of times, T / budget. Every budget is a run of its own.

The baseline, plain_recipe.py: the Transformer of the plan for T, plain PyTorch without compiling, fused AdamW (betas 0.9
and 0.95, weight decay 0.1 on matrices), 2 % warm-up and a cosine to 10 % over the elapsed share of T, gradients clipped
to 1, nanoGPT's first weights (--baseline-init shoestring gives it ours), plain cross-entropy, bfloat16 autocast where
the machine's probe says that it pays, the plan's batch unless --baseline-batch is given. Its peak learning rate is the
best of --rates on seed 0, by held-out loss after the whole T.

The clocks: the baseline's T holds building the model and all steps; starting Python, preparing the data and its evaluation
are not on it: a gift, as is the step that crosses the end. The candidate is a subprocess that pays from its budget for
reading the data, planning, measuring, compiling, evaluations, checkpoints and the sample. Unless --warm, each run has caches
of its own, without decisions and compiled code of earlier runs. Its model has the shape of the baseline's; batch, learning
rates and schedule are its own plan's. 'process' is the subprocess from start to exit, importing torch and the report
included: T / process is the ratio in the strictest sense.

Both final models are judged by one evaluator, on all held-out windows, here in float32, off all clocks. (The candidate's
own evaluations, on its clock, are those of its plan; its own last figure is in the JSON file too.)
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import budgeted
import plain_recipe

from shoestring import atomic
from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.launch.request import TrainingRequest, planned
from shoestring.model.transformer import Transformer
from shoestring.train.config import RunConfig
from shoestring.train.evaluate import HELDOUT_ORDER, Evaluator
from shoestring.train.run_folder import environment
from shoestring.train.trained import load_trained


@dataclass(frozen=True)
class Bench:
    """What all runs share. config: the plan for the whole time, of which the model counts and the baseline's batch."""

    options: argparse.Namespace
    machine: Machine
    dataset: Dataset
    config: RunConfig
    evaluator: Evaluator

    def loss(self, model: Transformer) -> float:
        """Held-out nats per token."""
        return self.evaluator(model.to(self.machine.device)).loss


def baseline(bench: Bench, seed: int, peak: float) -> dict[str, Any]:
    """The plain recipe, trained for the whole time."""
    model, steps, seconds = plain_recipe.train(
        bench.config.model,
        bench.dataset.train,
        seed=seed,
        peak=peak,
        batch=bench.options.baseline_batch,
        seconds=bench.options.seconds,
        device=bench.machine.device,
        bf16=bench.machine.best_precision == "bfloat16",
        own_init=bench.options.baseline_init == "gpt2",
    )
    found = {"seed": seed, "rate": peak, "loss": bench.loss(model), "seconds": seconds, "steps": steps}
    print(f"  baseline, seed {seed}, rate {peak:g}: {found['loss']:.4f}, {steps} steps, {seconds:.1f} s", flush=True)
    return found


def candidate(bench: Bench, seed: int, budget: float) -> dict[str, Any]:
    """A run of `shoestring train` with `budget` seconds, its model the baseline's."""
    folder, model = bench.options.out / f"seed-{seed}-{budget:g}s", bench.config.model
    summary, process = budgeted.train(model, folder, seed=seed, budget=budget, warm=bench.options.warm)
    found: dict[str, Any] = {"seed": seed, "budget": budget}
    found |= {"loss": bench.loss(load_trained(folder).native), "process": process}
    kept = ("heldout_loss", "heldout_targets", "seconds", "seconds_by_cause", "steps", "tokens", "parameters")
    found |= {"summary": {key: summary[key] for key in kept}}
    spent = f"{summary['steps']} steps, {summary['seconds']:.1f} s spent, process {process:.1f} s"
    print(f"  shoestring, seed {seed}, {budget:g} s: {found['loss']:.4f}, {spent}", flush=True)
    return found


def prepared(options: argparse.Namespace) -> Bench:
    """The corpus, the plan for the whole time, and the judge."""
    dataset = prepare(DataConfig(), cache_folder())
    machine = probe()
    words = ["--budget", f"{options.seconds:g}s"]
    for name in ("layers", "width"):
        words += [f"--model.{name}", str(getattr(options, name))] if getattr(options, name) else []
    made, config = planned(TrainingRequest.read(None, words), machine, dataset, 0.0)
    options.baseline_batch = options.baseline_batch or config.train.batch
    model = config.model
    windows = Windows(dataset.heldout, model.context, HELDOUT_ORDER, "stream")
    evaluator = Evaluator(
        windows,
        dataset.tokenizer.byte_lengths,
        sequences=len(windows),
        rows=8,
        device=machine.device,
        precision="float32",
    )
    print(
        f"{machine.name}, {machine.threads} threads; {made.parameters / 1e6:.2f} M parameters: {model.layers} layers,"
    )
    print(f"width {model.width}, context {model.context}; {len(windows) * model.context} held-out tokens")
    print(f"baseline: {options.baseline_batch} sequences a step, {machine.best_precision}", flush=True)
    return Bench(options, machine, dataset, config, evaluator)


def taken(run: dict[str, Any]) -> float:
    """Seconds a run of the candidate counts for: its budget, or what it spent where that was more."""
    return max(run["budget"], run["summary"]["seconds"])


def show(base: list[dict[str, Any]], runs: dict[int, list[dict[str, Any]]], whole: float) -> None:
    print(f"\nheld-out loss, nats per token; baseline after {whole:g} s")
    for plain in base:
        mine, goal = runs[plain["seed"]], plain["loss"]
        print(f"seed {plain['seed']}: baseline {goal:.4f}")
        for run in mine:
            verdict = "reached" if run["loss"] <= goal else "not reached"
            ratios = f"time ratio {whole / taken(run):.2f}, {whole / run['process']:.2f} by process"
            print(
                f"  shoestring {run['budget']:g} s: {run['loss']:.4f} ({run['loss'] - goal:+.4f}), {verdict}; {ratios}"
            )
        least = min((taken(run) for run in mine if run["loss"] <= goal), default=None)
        sooner = (
            "not reached at any budget" if least is None else f"reached, at best at a time ratio of {whole / least:.2f}"
        )
        print(f"  {sooner}")
    for budget in sorted({run["budget"] for mine in runs.values() for run in mine}):
        gaps = [r["loss"] - b["loss"] for b in base for r in runs[b["seed"]] if r["budget"] == budget]
        print(
            f"{budget:g} s less baseline: mean {mean(gaps):+.4f}, {min(gaps):+.4f} to {max(gaps):+.4f}, {len(gaps)} seeds"
        )


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="the baseline's time T, default 120")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2; the first one tunes")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[6e-4, 1.5e-3, 3e-3], help="learning rates to tune over"
    )
    parser.add_argument("--baseline-batch", type=int, help="sequences a step of the baseline, default the plan's")
    parser.add_argument(
        "--baseline-init",
        choices=("gpt2", "shoestring"),
        default="gpt2",
        help="first weights of the baseline: nanoGPT's own (default), or ours, which start lower: a gift",
    )
    parser.add_argument("--equal-time", action="store_true", help="also run the candidate for the whole time")
    parser.add_argument("--ladder", type=float, nargs="*", help="candidate's budgets in seconds, default T/4 3T/8 T/2")
    parser.add_argument("--layers", type=int, help="of both models, default the plan's for T")
    parser.add_argument("--width", type=int, help="of both models, default the plan's for T")
    parser.add_argument("--warm", action="store_true", help="let candidates use what earlier runs decided and compiled")
    parser.add_argument("--out", type=Path, help="folder for the candidates' runs, default bench-DATE-TIME under runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options = parser.parse_args(words)
    options.out = options.out or Path("runs") / time.strftime("bench-%Y-%m-%d-%H%M%S")
    if options.out.exists():  # said now, not when the tuning is done
        parser.error(f"{options.out} exists already: name a new folder with --out")
    return options


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read(words)
    whole, (first, *others) = options.seconds, options.seeds
    ladder = [] if options.ladder is None else options.ladder or [whole / 4, 3 * whole / 8]
    budgets = sorted({whole / 2, *ladder, *([whole] if options.equal_time else [])})
    bench = prepared(options)
    tuning = [baseline(bench, first, rate) for rate in options.rates]
    best = min(tuning, key=lambda run: run["loss"])
    if len(tuning) > 1 and best["rate"] in (min(options.rates), max(options.rates)):
        print("  the best rate is at the edge of those tried: widen --rates")
    base, runs = [best], {first: [candidate(bench, first, budget) for budget in budgets]}
    for seed in others:
        base.append(baseline(bench, seed, best["rate"]))
        runs[seed] = [candidate(bench, seed, budget) for budget in budgets]
    show(base, runs, whole)
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        found = {"tuning": tuning, "baseline": base, "candidate": runs}
        content = {"settings": settings, "environment": environment(bench.machine), **found}
        atomic.write_text(options.json, json.dumps(content, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
