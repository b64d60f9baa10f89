"""Do ternary models gain more from tokens or from parameters, and how far are they behind float ones?

Trains one small Transformer at three widths and three token counts, with float and with ternary weights (one scale a matrix,
quantised from the first step on; embedding, which is the head too, and norms in float), all else equal: the embedded corpus,
batch, Muon for matrices and AdamW for the rest, warm-up and linear decay to zero, gradients clipped to 1, matrix products in
bfloat16, first weights and order of data from the seed. A run's figure is the mean loss on held-out windows after its last
step, of the ternary model where there is one.

Each arm has learning rates of its own: 2^k times those of the base, AdamW's along with Muon's, the best k at the middle width
and the fewest tokens, tried until it has a worse neighbour on either side. Then L(N, D) = E + A / N^alpha + B / D^beta is
fitted to each arm's grid (`shoestring.plan.laws.chinchilla`; N counts all parameters, or with --count body those of the
blocks), the exponents are printed with their intervals, and both are drawn. The paper (arXiv:2506.23025) finds that ternary
models gain more from training data than from parameters.

Every run is a line of --out, and what is there is not run again: stop this at any time and start it again, or run `--once` in
a loop, each of which makes one run and says by exit status 3 that none was missing.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from run_lines import RunLines
from torch import Tensor
from torch.nn import functional as F

from shoestring import atomic
from shoestring.budget.machine import cache_folder
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Batch, Windows
from shoestring.errors import UsageError
from shoestring.lowbit import lower
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.adamw import AdamW
from shoestring.optim.composite import scale_learning_rates
from shoestring.optim.muon import Muon
from shoestring.optim.partition import partition
from shoestring.plan.law import Fitted
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.runs_table import RunsTable
from shoestring.schedule.linear import LinearDecay
from shoestring.schedule.warmup import with_warmup
from shoestring.train.evaluate import HELDOUT_ORDER

NOTHING_MISSING = 3
FARTHEST = 5
"""Doublings of the base's learning rates at which a search gives up."""

ARMS = {"float": "Float", "ternary": "Ternary"}


@dataclass(frozen=True)
class Settings:
    """What all runs share; runs of other settings are not mixed with these."""

    layers: int
    head_width: int
    vocabulary: int
    context: int
    batch: int
    lr: float
    fallback_lr: float
    warmup: float
    heldout_windows: int


@dataclass(frozen=True)
class Cell:
    """A place in the grid, and the learning rates tried there."""

    arm: str
    width: int
    tokens: int
    k: int
    seed: int


def loss_of(model: Transformer, data: Batch, reduction: str) -> Tensor:
    """Cross-entropy, nats; matrix products in bfloat16, weights and the loss itself in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(data.inputs.values)
    return F.cross_entropy(logits.float().flatten(0, 1), data.targets.flatten(), reduction=reduction)


@torch.no_grad()
def heldout(model: Transformer, windows: Windows, count: int) -> float:
    """Mean nats per token over `count` windows."""
    losses = [loss_of(model, windows.batch(at, min(32, count - at)), "sum") for at in range(0, count, 32)]
    return float(sum(losses)) / (count * windows.context)


def train(cell: Cell, settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """One run, as a line of the file."""
    began, factor = time.perf_counter(), 2.0**cell.k
    torch.manual_seed(cell.seed)
    model = Transformer(
        ModelConfig(
            layers=settings.layers,
            width=cell.width,
            heads=cell.width // settings.head_width,
            vocabulary=dataset.tokenizer.vocabulary,
            context=settings.context,
        )
    )
    lowered = lower(model, Ternary()).weights if cell.arm == "ternary" else 0
    fallback = partial(AdamW, lr=settings.fallback_lr * factor)
    optimizer = partition(model, partial(Muon, lr=settings.lr * factor), fallback).build()
    schedule = with_warmup(LinearDecay(), settings.warmup)
    windows = Windows(dataset.train, settings.context, cell.seed)
    steps = round(cell.tokens / (settings.batch * settings.context))
    for step in range(steps):
        loss = loss_of(model, windows.batch(step * settings.batch, settings.batch), "mean")
        if not torch.isfinite(loss):
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale_learning_rates(optimizer, schedule((step + 0.5) / steps))
        optimizer.step()
        optimizer.zero_grad()
    found = heldout(model, Windows(dataset.heldout, settings.context, HELDOUT_ORDER), settings.heldout_windows)
    return {
        **asdict(cell),
        "loss": found if math.isfinite(found) else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "body": sum(p.numel() for p in model.blocks.parameters()),
        "lowered": lowered,
        "trained_tokens": steps * settings.batch * settings.context,
        "seconds": round(time.perf_counter() - began, 2),
        "settings": asdict(settings),
    }


class Runs(RunLines):
    """The runs by arm, width and what else tells them apart."""

    def of(self, arm: str, width: int, tokens: int) -> list[dict[str, Any]]:
        return [line for line in self.lines if (line["arm"], line["width"], line["tokens"]) == (arm, width, tokens)]

    def curve(self, arm: str, width: int, tokens: int) -> dict[int, float]:
        """The loss of seed 0 at each k; inf where a run diverged."""
        own = [line for line in self.of(arm, width, tokens) if line["seed"] == 0]
        return {line["k"]: math.inf if line["loss"] is None else line["loss"] for line in own}


@dataclass(frozen=True)
class Plan:
    """widths, tokens: rising. seeds: how many."""

    arms: Sequence[str]
    widths: Sequence[int]
    tokens: Sequence[int]
    seeds: int

    def tuned(self, runs: Runs, arm: str) -> int | Cell:
        """The k that is best for an arm, or the next run that tells."""
        width, tokens = self.widths[len(self.widths) // 2], self.tokens[0]
        curve = runs.curve(arm, width, tokens)
        if not curve:
            return Cell(arm, width, tokens, 0, 0)
        best = min(curve, key=lambda k: (curve[k], abs(k)))
        if abs(best) > FARTHEST:
            raise SystemExit(f"{arm}: no best learning rate up to 2^{best} times the base's")
        untried = [best + d for d in (-1, 1) if best + d not in curve]
        return Cell(arm, width, tokens, untried[0], 0) if untried else best

    def missing(self, runs: Runs) -> Cell | None:
        """The next run; first what tunes an arm, then its grid from the small to the large, all of one seed before the next."""
        for seed in range(self.seeds):
            for arm in self.arms:
                k = self.tuned(runs, arm)
                if isinstance(k, Cell):
                    return k
                for tokens in self.tokens:
                    for width in self.widths:
                        done = {(line["k"], line["seed"]) for line in runs.of(arm, width, tokens)}
                        if (k, seed) not in done:
                            return Cell(arm, width, tokens, k, seed)
        return None

    def points(self, runs: Runs, arm: str, count: str) -> list[dict[str, float]]:
        """The runs of an arm's grid at its learning rates, as rows of a table."""
        k = self.tuned(runs, arm)
        lines = [x for w in self.widths for t in self.tokens for x in runs.of(arm, w, t) if x["k"] == k and x["loss"]]
        return [{"parameters": x[count], "tokens": x["trained_tokens"], "loss": x["loss"]} for x in lines]


def show(runs: Runs, plan: Plan, count: str) -> dict[str, Fitted]:
    """Print losses, gaps and laws; the fits that there are runs enough for, by title."""
    fits: dict[str, Fitted] = {}
    tables = {}
    for arm in plan.arms:
        k = plan.tuned(runs, arm)
        points = plan.points(runs, arm, count)
        tables[arm] = {
            size: [p for p in points if p["parameters"] == size] for size in sorted({p["parameters"] for p in points})
        }
        rate = "learning rates not chosen yet" if isinstance(k, Cell) else f"learning rates 2^{k} times the base's"
        print(f"\n{ARMS[arm]}, {rate}")
        for size, row in tables[arm].items():
            print(
                f"  {size:>11,.0f} parameters: "
                + ", ".join(f"{p['loss']:.4f} at {p['tokens'] / 1e6:.2f} M" for p in row)
            )
        try:
            fits[ARMS[arm]] = Chinchilla().fit(RunsTable.of(points))
        except UsageError as error:
            print(f"  no law yet: {error}")
        else:
            print("  " + fits[ARMS[arm]].describe().replace("\n", "\n  "))
    if len(plan.arms) == 2:
        one, other = (tables[arm] for arm in plan.arms)
        print(f"\nloss of {plan.arms[1]} above {plan.arms[0]}")
        for size in sorted(one.keys() & other.keys()):
            levels = sorted({p["tokens"] for p in one[size]} & {p["tokens"] for p in other[size]})
            means = [
                [fmean(p["loss"] for p in table[size] if p["tokens"] == level) for table in (one, other)]
                for level in levels
            ]
            said = (
                f"{above - below:+.4f} at {at / 1e6:.2f} M" for at, (below, above) in zip(levels, means, strict=True)
            )
            print(f"  {size:>11,.0f} parameters: " + ", ".join(said))
    return fits


def draw(fits: dict[str, Fitted], target: Path) -> None:
    from io import BytesIO

    from shoestring.report.drawing import save
    from shoestring.report.law_figure import law_figure

    buffer = BytesIO()
    save(law_figure(fits), buffer, "svg")
    atomic.write_bytes(target, buffer.getvalue())
    print(f"\n{target}")


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path("evidence/ternary-law")
    parser.add_argument("--out", type=Path, default=folder / "runs.jsonl", help=f"default {folder}/runs.jsonl")
    parser.add_argument("--figure", type=Path, default=Path("docs/ternary-law.svg"), help="default %(default)s")
    parser.add_argument("--once", action="store_true", help="one run, then exit; status 3: none was missing")
    parser.add_argument("--show", action="store_true", help="run nothing: print and draw what the file holds")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 160])
    parser.add_argument("--tokens", type=int, nargs="+", default=[400_000, 800_000, 1_600_000])
    parser.add_argument("--seeds", type=int, default=1, help="how many, default 1")
    parser.add_argument("--count", choices=("parameters", "body"), default="parameters", help="what N counts")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    numbers = {"layers": 3, "head-width": 32, "vocabulary": 2048, "context": 128, "batch": 16, "heldout-windows": 128}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    for name, number in {"lr": 0.02, "fallback-lr": 0.01, "warmup": 0.05}.items():
        parser.add_argument(f"--{name}", type=float, default=number, help=f"default {number}")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read(words)
    torch.set_num_threads(options.threads)
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    plan = Plan(options.arms, sorted(options.widths), sorted(options.tokens), options.seeds)
    runs = Runs(options.out, asdict(settings))
    if not options.show:
        dataset = prepare(DataConfig(vocabulary=settings.vocabulary), cache_folder())
        while cell := plan.missing(runs):
            line = train(cell, settings, dataset)
            runs.add(line)
            where = f"{cell.arm}, width {cell.width}, {cell.tokens / 1e6:.2f} M tokens, k {cell.k}, seed {cell.seed}"
            print(f"{where}: {line['loss']}, {line['seconds']} s", flush=True)
            if options.once:
                return
        if options.once:
            raise SystemExit(NOTHING_MISSING)
    fits = show(runs, plan, options.count)
    if fits:
        draw(fits, options.figure)


if __name__ == "__main__":
    main(sys.argv[1:])
