"""Does the gradient noise scale, measured on the way, foretell what larger batches buy?

McCandlish et al. (2018), arXiv:1812.06162: to reach a loss takes S steps and E tokens at a batch of B = E / S tokens, and

    (S / S_min - 1) (E / E_min - 1) = 1,    critical batch B_crit = E_min / S_min

One small Transformer is trained by AdamW at every one of --batches sequences a step until its held-out loss is --target, at
three learning rates: that of the middle batch by the square root of the batch, times 1/2, 1 and 2, constant after a short
warm-up. beta2's half-life in tokens is the same at every batch. The tokens at which the target is passed are interpolated
between evaluations; of each batch the best of the three counts. S_min and E_min are fitted by least squares of
log S = log S_min + log(1 + B_crit / B). Beside that B_crit stands the simple noise scale tr(Sigma) / |G|^2 that the runs
measured when they passed the target, by `shoestring.train.noise_scale` (the first quarter of a batch beside all of it).

Every run is a line of --out, and what is there is not run again.
"""

import argparse
import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run_lines import RunLines
from scipy.optimize import least_squares
from torch import nn
from torch.nn import functional as F

from shoestring.budget.machine import cache_folder
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.adamw import AdamW
from shoestring.schedule.batch_rule.constant_half_life import ConstantHalfLife
from shoestring.schedule.batch_rule.rule import scale_to_batch
from shoestring.train.evaluate import HELDOUT_ORDER
from shoestring.train.noise_scale import NoiseScale

FACTORS = (0.5, 1.0, 2.0)
WARMUP = 20
"""Steps at the middle batch; as many tokens at any other."""


def heldout(model: Transformer, windows: Windows, count: int) -> float:
    with torch.no_grad():
        data = windows.batch(0, count)
        return float(F.cross_entropy(model(data.inputs.values).flatten(0, 1), data.targets.flatten()))


def squared_norm(model: nn.Module) -> float:
    return sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)


def train(batch: int, factor: float, options: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """One run, as a line of the file. tokens, steps: at which the target was passed; None where it was not."""
    torch.manual_seed(options.seed)
    model = Transformer(
        ModelConfig(
            layers=options.layers,
            width=options.width,
            heads=options.width // 32,
            vocabulary=dataset.tokenizer.vocabulary,
            context=options.context,
        )
    )
    lr = options.lr * factor * math.sqrt(batch / options.middle)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    scale_to_batch(ConstantHalfLife(reference=options.middle), optimizer.param_groups, batch)
    windows = Windows(dataset.train, options.context, options.seed)
    held = Windows(dataset.heldout, options.context, HELDOUT_ORDER)
    noise, a_step = NoiseScale(decay=0.95), batch * options.context
    every = max(1, round(options.every / a_step))
    curve: list[tuple[int, float]] = []
    warm, least = WARMUP * options.middle * options.context, max(1, batch // 4)
    for step in range(1, options.tokens // a_step + 1):
        data = windows.batch((step - 1) * batch, batch)
        first = 0.0
        for part in (slice(0, least), slice(least, None)) if batch > least else (slice(None),):
            rows = data.targets[part].shape[0]
            loss = F.cross_entropy(model(data.inputs.values[part]).flatten(0, 1), data.targets[part].flatten())
            (loss * (rows / batch)).backward()
            if not first and rows < batch:
                first = squared_norm(model) * (batch / rows) ** 2
        if first:
            noise.measure(first, least * options.context, squared_norm(model), a_step)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, step * a_step / warm)
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0:
            found = heldout(model, held, options.heldout_windows)
            curve.append((step * a_step, found))
            if not math.isfinite(found) or found <= options.target:
                break
    passed = crossing(curve, options.target)
    return {
        "batch": batch,
        "factor": factor,
        "lr": lr,
        "tokens": passed,
        "steps": None if passed is None else passed / a_step,
        "noise_scale": noise.critical_batch,
        "curve": curve,
        "settings": shared(options),
    }


def crossing(curve: Sequence[tuple[int, float]], target: float) -> float | None:
    """The tokens at which the loss first was `target`, straight between evaluations; None where it never was."""
    for (before, high), (after, low) in itertools.pairwise(curve):
        if high > target >= low:
            return before + (after - before) * (high - target) / (high - low)
    return None


def fitted(found: dict[int, dict[str, Any]], context: int) -> tuple[float, float, float]:
    """(S_min, E_min, B_crit), the latter two in tokens, from the best run of each batch."""
    batches = np.array([batch * context for batch in found], dtype=float)
    steps = np.array([line["steps"] for line in found.values()])

    def residuals(x: np.ndarray) -> np.ndarray:
        gaps: np.ndarray = np.log(steps) - x[0] - np.log1p(np.exp(x[1]) / batches)
        return gaps

    least, critical = np.exp(least_squares(residuals, [math.log(steps.min()), math.log(batches.mean())]).x)
    return float(least), float(least * critical), float(critical)


def table(runs: RunLines, context: int) -> None:
    found: dict[int, dict[str, Any]] = {}
    for batch in sorted({line["batch"] for line in runs.lines}):
        reached = [line for line in runs.lines if line["batch"] == batch and line["tokens"] is not None]
        if not reached:
            print(f"batch {batch:4}: the target was not reached")
            continue
        best = found[batch] = min(reached, key=lambda line: line["tokens"])
        edge = "" if best["factor"] == 1 else ", at the edge of the rates tried"
        measured = "not measured" if best["noise_scale"] is None else f"{best['noise_scale']:.0f} tokens"
        print(
            f"batch {batch:4} ({batch * context} tokens): {best['steps']:.0f} steps, {best['tokens']:.0f} tokens, "
            f"lr {best['lr']:.3g}{edge}; noise scale {measured}"
        )
    if len(found) < 4:
        return
    least, tokens, critical = fitted(found, context)
    scales = [line["noise_scale"] for line in found.values() if line["noise_scale"] is not None]
    print(f"S_min {least:.0f} steps, E_min {tokens:.0f} tokens, critical batch {critical:.0f} tokens")
    if scales:
        middle = float(np.median(scales))
        print(
            f"noise scale where the target was passed: median {middle:.0f} tokens, {middle / critical:.2f} times as much"
        )


def shared(options: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(options).items() if key not in ("out", "show", "batches")}


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("evidence/noise-scale/runs.jsonl"), help="default %(default)s")
    parser.add_argument("--show", action="store_true", help="run nothing: print what the file holds")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 2, 32, 4, 16, 64], help="sequences a step")
    parser.add_argument("--target", type=float, default=4.9, help="held-out nats per token, default 4.9")
    parser.add_argument("--lr", type=float, default=8e-3, help="at the middle batch, default 8e-3")
    numbers = {"middle": 8, "tokens": 400_000, "every": 8192, "seed": 0, "layers": 1, "width": 64, "vocabulary": 1024}
    numbers |= {"context": 64, "heldout-windows": 128}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    runs = RunLines(options.out, shared(options))
    if not options.show:
        dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
        made = {(line["batch"], line["factor"]) for line in runs.lines}
        for batch in options.batches:
            for factor in FACTORS:
                if (batch, factor) not in made:
                    line = train(batch, factor, options, dataset)
                    runs.add(line)
                    print(f"batch {batch}, lr {line['lr']:.3g}: {line['tokens']} tokens", flush=True)
    table(runs, options.context)


if __name__ == "__main__":
    main()
