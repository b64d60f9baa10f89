"""What a step of Muon, on the sphere too, and of SOAP adds to a whole AdamW step. Used by optimizers.py."""

import argparse
import time
from dataclasses import replace
from statistics import mean, median
from typing import Any

from sides import synchronise

from shoestring.config import Choice
from shoestring.contract.objective import At
from shoestring.data.dataset import Dataset
from shoestring.train.assembly import assemble
from shoestring.train.config import RunConfig

ROUND = 10
"""Steps a round: what lies between two of SOAP's refreshes."""

UNTIMED = 5
"""Steps before those that are timed."""


def rounds(seconds: list[float]) -> list[float]:
    """The mean of each whole round of steps."""
    return [mean(seconds[at : at + ROUND]) for at in range(0, len(seconds) - ROUND + 1, ROUND)]


def cost(config: RunConfig, dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the steps of each optimiser in turn, forward and backward apart."""
    chosen = {
        "adamw": config.optim,
        "muon": Choice.of("optim", "muon", precision=options.muon_precision, compile=options.compile_ours),
        "muon_hypersphere": Choice.of(
            "optim", "muon_hypersphere", precision=options.muon_precision, compile=options.compile_ours
        ),
        "soap": Choice.of("optim", "soap", compile=options.compile_ours),
    }
    parts = {name: assemble(replace(config, optim=optim), dataset) for name, optim in chosen.items()}
    passes: dict[str, list[float]] = {name: [] for name in parts}
    steps: dict[str, list[float]] = {name: [] for name in parts}
    rows = config.train.batch
    for number in range(UNTIMED + options.cost_steps):
        for name, own in parts.items():
            batch = own.source.batch(number * rows, rows)
            began = time.perf_counter()
            own.stepper.gradients(batch, At(number))
            synchronise()
            between = time.perf_counter()
            own.stepper.apply(1.0)
            synchronise()
            if number >= UNTIMED:
                passes[name].append(between - began)
                steps[name].append(time.perf_counter() - between)
    whole = [a + b for a, b in zip(rounds(passes["adamw"]), rounds(steps["adamw"]), strict=True)]
    sides = {}
    for name in parts:
        taken = rounds(steps[name])
        over = [(own - base) / all_of for own, base, all_of in zip(taken, rounds(steps["adamw"]), whole, strict=True)]
        sides[name] = {
            "median_ms": 1e3 * median(steps[name]),
            "mean_ms": 1e3 * median(taken),
            "share_of_adamw_step": median(own / all_of for own, all_of in zip(taken, whole, strict=True)),
            "added_to_adamw_step": median(over),
        }
    parameters = sum(p.numel() for p in parts["adamw"].model.parameters())
    return {"parameters": parameters, "whole_adamw_step_ms": 1e3 * median(whole), "sides": sides}


def show_cost(found: dict[str, Any]) -> None:
    whole = found["whole_adamw_step_ms"]
    print(f"\n{found['parameters'] / 1e6:.2f} M parameters; a whole AdamW step takes {whole:.1f} ms")
    print(f"{'':20}{'median ms':>12}{'mean ms':>12}{'of the step':>14}{'adds to it':>14}")
    for name, side in found["sides"].items():
        shares = f"{side['share_of_adamw_step']:14.1%}{side['added_to_adamw_step']:14.1%}"
        print(f"{name:20}{side['median_ms']:12.2f}{side['mean_ms']:12.2f}{shares}")
