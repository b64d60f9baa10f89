"""Does the best learning rate stay where it is as a model grows wider?

Arms: AdamW, the same under muP with its weight-decay rule, Muon (AdamW for embedding and gains), and Muon on the
Frobenius sphere under HyperP. Each arm trains one small Transformer at several widths, its heads of one width, at
learning rates 2^(k/2) times the arm's middle one, all else equal: the embedded corpus, batch, steps, a linear decay to
zero after a short warm-up, gradients clipped to 1, matrix products in bfloat16, first weights and order of data from the
seed. A run's figure is the mean loss on held-out windows after its last step.

Of each arm and width as many rates are tried as put the best of them two steps away from both ends; the search starts at
the best of the width before. The optimum is the vertex of a parabola, loss over log2 of the rate, through those five
points by least squares (--fit 3: exactly through the best and its neighbours). What is asked: the largest optimum over
the smallest, in factors of sqrt(2); below 1 the recipe transfers.

Under both Muon arms AdamW keeps a learning rate of its own, --fallback before the rule of transfer, while the matrices' is
searched, as a recipe keeps `fallback.lr`. Weight decay, AdamW's, is strong
enough to work within such short runs: at a learning rate of 1e-2 weights forget in 100 steps.

Every run is a line of --out, and what is there is not run again: stop this at any time and start it again, or run
`--once` in a loop, each of which makes one run and says by exit status 3 that none was missing. Two may run at once, on
different --arms.
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

from shoestring.budget.machine import cache_folder
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.data.windows import Batch, Windows
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.adamw import AdamW
from shoestring.optim.composite import scale_learning_rates
from shoestring.optim.muon import Muon
from shoestring.optim.muon_hypersphere import MuonHypersphere
from shoestring.optim.partition import Partition, members, partition
from shoestring.schedule.linear import LinearDecay
from shoestring.schedule.transfer.hyperp import HyperP
from shoestring.schedule.transfer.mup import MuP
from shoestring.schedule.transfer.rule import Scale, Transfer, require_optimizer, scale_groups, scale_weights
from shoestring.schedule.transfer.spectrum import expected_growth, mean_growth, top_singular_values
from shoestring.schedule.transfer.standard import Standard
from shoestring.schedule.warmup import with_warmup
from shoestring.train.evaluate import HELDOUT_ORDER

NOTHING_MISSING = 3
FARTHEST = 14
"""Steps of sqrt(2) from the middle at which a search gives up: a factor of 128."""


@dataclass(frozen=True)
class Settings:
    """What all runs share; runs of other settings are not mixed with these."""

    layers: int
    head_width: int
    base_width: int
    vocabulary: int
    context: int
    batch: int
    steps: int
    warmup: float
    weight_decay: float
    fallback: float
    heldout_windows: int


@dataclass(frozen=True)
class Arm:
    """middle: the learning rate at k = 0. optimizer: its name, as `require_optimizer` knows it."""

    title: str
    middle: float
    optimizer: str


ARMS = {
    "adamw": Arm("AdamW", 2**-7, "adamw"),
    "adamw-mup": Arm("AdamW, muP + weight-decay rule", 2**-7, "adamw"),
    "muon": Arm("Muon", 2**-5, "muon"),
    "muon-hyperp": Arm("Muon on the sphere, HyperP", 2**-5, "muon_hypersphere"),
}


def rate(arm: str, k: int) -> float:
    return ARMS[arm].middle * 2 ** (k / 2)


def transfer_of(arm: str, settings: Settings) -> Transfer:
    if arm == "adamw-mup":
        return MuP(base_width=settings.base_width)
    if arm == "muon-hyperp":
        return HyperP(base_width=settings.base_width, base_depth=settings.layers)
    return Standard()


def claimed(arm: str, model: Transformer, settings: Settings, lr: float) -> Partition:
    """Who moves which parameters, at the base recipe's learning rate `lr`."""
    if ARMS[arm].optimizer == "adamw":
        return partition(model, partial(AdamW, lr=lr, weight_decay=settings.weight_decay))
    fallback = partial(AdamW, lr=settings.fallback)
    return partition(model, partial(Muon if arm == "muon" else MuonHypersphere, lr=lr), fallback)


def loss_of(model: Transformer, data: Batch, reduction: str) -> Tensor:
    """Cross-entropy, nats; matrix products in bfloat16, weights and the loss itself in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(data.inputs.values)
    return F.cross_entropy(logits.float().flatten(0, 1), data.targets.flatten(), reduction=reduction)


@torch.no_grad()
def heldout(model: Transformer, windows: Windows, count: int) -> float:
    """Mean nats per token over `count` windows."""
    losses = []
    for start in range(0, count, 32):
        data = windows.batch(start, min(32, count - start))
        losses.append(loss_of(model, data, "sum"))
    return float(sum(losses)) / (count * windows.context)


def train(arm: str, width: int, k: int, seed: int, settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """One run, as a line of the file."""
    return {"arm": arm, "width": width, **trained(arm, width, k, seed, settings, dataset, transfer_of(arm, settings))}


def trained(
    arm: str, width: int, k: int, seed: int, settings: Settings, dataset: Dataset, transfer: Transfer
) -> dict[str, Any]:
    """One run of a model of this width under a rule of transfer, as it is written down. settings: its layers and steps too."""
    began, lr = time.perf_counter(), rate(arm, k)
    require_optimizer(transfer, ARMS[arm].optimizer)
    rules = transfer(
        Scale(width=width, depth=settings.layers, tokens=settings.steps * settings.batch * settings.context)
    )
    torch.manual_seed(seed)
    model = Transformer(
        ModelConfig(
            layers=settings.layers,
            width=width,
            heads=width // settings.head_width,
            vocabulary=dataset.tokenizer.vocabulary,
            context=settings.context,
            input_scale=rules.input,
            output_scale=rules.output,
        )
    )
    optimizer = claimed(arm, model, settings, lr).build()
    scale_weights(rules, ((member.role, member.parameter) for member in members(model)))
    scale_groups(rules, optimizer.param_groups)
    schedule = with_warmup(LinearDecay(), settings.warmup)
    windows = Windows(dataset.train, settings.context, seed)
    for step in range(settings.steps):
        data = windows.batch(step * settings.batch, settings.batch)
        loss = loss_of(model, data, "mean")
        if not torch.isfinite(loss):
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale_learning_rates(optimizer, schedule((step + 0.5) / settings.steps))
        optimizer.step()
        optimizer.zero_grad()
    found = heldout(model, Windows(dataset.heldout, settings.context, HELDOUT_ORDER), settings.heldout_windows)
    seconds = time.perf_counter() - began
    finite = math.isfinite(found)
    matrices = [(member.name, member.parameter) for member in members(model) if member.role == "matrix"]
    return {
        "k": k,
        "seed": seed,
        "lr": lr,
        "loss": found if finite else None,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(settings.steps * settings.batch * settings.context / seconds),
        "singular_values": {n: round(v, 5) for n, v in top_singular_values(matrices).items()} if finite else None,
        "settings": asdict(settings),
    }


Curve = dict[int, float]
"""The loss at each k, mean over the seeds that all have; inf where a run diverged."""


class Runs(RunLines):
    """The runs by arm, width and what else tells them apart."""

    def of(self, arm: str, width: int) -> list[dict[str, Any]]:
        return [line for line in self.lines if (line["arm"], line["width"]) == (arm, width)]

    def curve(self, arm: str, width: int, seeds: Sequence[int]) -> Curve:
        by_k: dict[int, dict[int, float]] = {}
        for line in self.of(arm, width):
            loss = math.inf if line["loss"] is None else line["loss"]
            by_k.setdefault(line["k"], {})[line["seed"]] = loss
        return {k: fmean(found[s] for s in seeds) for k, found in sorted(by_k.items()) if found.keys() >= set(seeds)}


def best(curve: Curve) -> int:
    return min(curve, key=lambda k: (curve[k], abs(k)))


def complete(curve: Curve) -> bool:
    return bool(curve) and all(best(curve) + d in curve for d in (-2, -1, 1, 2))


def missing(runs: Runs, arms: Sequence[str], widths: Sequence[int], seeds: int) -> tuple[str, int, int, int] | None:
    """(arm, width, k, seed) of the next run; first all of one seed, then those of the next as well."""
    for count in range(1, seeds + 1):
        for arm in arms:
            start = 0
            for width in sorted(widths):
                curve = runs.curve(arm, width, range(count))
                if not complete(curve):
                    # after the first seed, begin where that one's best is
                    known = curve or (runs.curve(arm, width, range(count - 1)) if count > 1 else {})
                    middle = best(known) if known else start
                    k = next(middle + d for d in (0, -1, 1, -2, 2) if middle + d not in curve)
                    if abs(k) > FARTHEST:
                        raise SystemExit(f"{arm}, width {width}: no best learning rate up to {rate(arm, k):g}")
                    done = {line["seed"] for line in runs.of(arm, width) if line["k"] == k}
                    return arm, width, k, next(seed for seed in range(count) if seed not in done)
                start = best(curve)
    return None


def optimum(curve: Curve, points: int) -> float:
    """The k, not a whole number, at which the parabola through the best `points` neighbours is lowest.

    Raises: SystemExit where they do not lie in a bowl.
    """
    centre, reach = best(curve), points // 2
    near = [(d, curve[centre + d]) for d in range(-reach, reach + 1) if math.isfinite(curve[centre + d])]
    places = torch.tensor([[1.0, d, d * d] for d, _ in near], dtype=torch.float64)
    heights = torch.tensor([[loss] for _, loss in near], dtype=torch.float64)
    _, slope, bend = torch.linalg.lstsq(places, heights).solution[:, 0].tolist()
    if bend <= 0:
        raise SystemExit(f"no bowl at {near}: the runs are too noisy")
    return centre - slope / (2 * bend)


def table(
    runs: Runs, arms: Sequence[str], widths: Sequence[int], seeds: int, points: int
) -> dict[str, dict[int, float]]:
    """Print what was found; the optimum k of each arm and width that is complete."""
    places: dict[str, dict[int, float]] = {}
    for arm in arms:
        print(f"\n{ARMS[arm].title}")
        places[arm] = {}
        for width in sorted(widths):
            curve = runs.curve(arm, width, range(seeds))
            if not complete(curve):
                print(f"  width {width:4}: not complete, {len(runs.of(arm, width))} runs")
                continue
            places[arm][width] = at = optimum(curve, points)
            alone = [optimum(c, points) for s in range(seeds) if complete(c := runs.curve(arm, width, [s]))]
            apart = f", seeds apart {max(alone) - min(alone):.2f} steps" if len(alone) > 1 else ""
            values = " ".join(f"{rate(arm, k):.2g}:{loss:.4f}" for k, loss in curve.items())
            print(f"  width {width:4}: best lr {rate(arm, 0) * 2 ** (at / 2):.3g}{apart};  {values}")
        found = list(places[arm].values())
        if len(found) > 1:
            drift = max(found) - min(found)
            verdict = "transfers" if drift <= 1 else "moves"
            print(f"  the optimum moves by {drift:.2f} factors of sqrt(2) over {len(found)} widths: {verdict}")
            spectra(runs, arm, places[arm])
    return places


def spectra(runs: Runs, arm: str, places: dict[int, float]) -> None:
    """Top singular values at one learning rate, the best of the narrowest width, over widths; and the paper's 1."""
    narrow, *others = sorted(places)
    k = round(places[narrow])
    values = {w: next((r["singular_values"] for r in runs.of(arm, w) if r["k"] == k), None) for w in places}
    first, known = values[narrow], {w: found for w in others if (found := values[w])}
    if not first or not known or ARMS[arm].optimizer != "adamw":
        return
    grown = ", ".join(f"{w}: {mean_growth(first, found):.2f}" for w, found in known.items())
    settings = runs.lines[0]["settings"]
    rule, widest = transfer_of(arm, Settings(**settings)), max(known)
    one, other = (rule(Scale(width=w, depth=settings["layers"])).matrix for w in (narrow, widest))
    ratios = {"lr": other.lr / one.lr, "weight_decay": other.weight_decay / one.weight_decay}
    long = expected_growth(widest / narrow, **ratios)
    print(f"  top singular values at lr {rate(arm, k):.2g}, over those of width {narrow}: {grown}")
    print(f"  (in long training sqrt(lr / decay) d^0.75 is {long:.2f} at width {widest})")


def draw(runs: Runs, places: dict[str, dict[int, float]], seeds: int, target: Path) -> None:
    """Loss over learning rate, a panel an arm, a line a width, the optimum marked."""
    from matplotlib.figure import Figure

    from shoestring import atomic
    from shoestring.report.drawing import COLOUR, SERIES, UNIT, save

    arms = [arm for arm, found in places.items() if found]
    width, height = 400, 290
    rows = math.ceil(len(arms) / 2)
    figure = Figure(figsize=(2 * width / UNIT, rows * height / UNIT))
    for number, arm in enumerate(arms):
        axes = figure.add_subplot(rows, 2, number + 1)
        drift = max(places[arm].values()) - min(places[arm].values())
        axes.set_title(ARMS[arm].title, loc="left", fontsize=12, fontweight="bold", color=COLOUR["ink"], pad=24)
        said = f"the best rate moves by {drift:.1f} factors of √2"
        axes.text(0, 1.04, said, transform=axes.transAxes, fontsize=10.5, color=COLOUR["muted"])
        for series, (size, at) in zip(SERIES, places[arm].items(), strict=False):
            curve = {k: v for k, v in runs.curve(arm, size, range(seeds)).items() if math.isfinite(v)}
            low = min(curve.values())
            rates = [rate(arm, k) for k in curve]
            axes.plot(
                rates, list(curve.values()), "-o", color=COLOUR[series], markersize=3.5, linewidth=1.6, label=f"{size}"
            )
            axes.plot([rate(arm, 0) * 2 ** (at / 2)], [low], "v", color=COLOUR[series], markersize=9, clip_on=False)
        lows = [min(runs.curve(arm, size, range(seeds)).values()) for size in places[arm]]
        axes.set_ylim(min(lows) - 0.05, max(lows) + 0.45)
        axes.set_xscale("log", base=2)
        axes.grid(color=COLOUR["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=10, labelcolor=COLOUR["muted"], length=0)
        axes.set_xlabel("learning rate of the base recipe", fontsize=10.5, color=COLOUR["muted"])
        if number % 2 == 0:
            axes.set_ylabel("held-out loss, nats", fontsize=10.5, color=COLOUR["muted"])
        if number == 0:
            axes.legend(title="width", fontsize=10, title_fontsize=10, frameon=False, loc="upper right")
    figure.tight_layout(h_pad=2.5, w_pad=2.5)
    from io import BytesIO

    buffer = BytesIO()
    save(figure, buffer, "svg")
    atomic.write_bytes(target, buffer.getvalue())
    print(f"\n{target}")


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path("evidence/width-transfer")
    parser.add_argument("--out", type=Path, default=folder / "runs.jsonl", help=f"default {folder}/runs.jsonl")
    parser.add_argument("--figure", type=Path, default=Path("docs/width-transfer.svg"), help="default %(default)s")
    parser.add_argument("--once", action="store_true", help="one run, then exit; status 3: none was missing")
    parser.add_argument("--show", action="store_true", help="run nothing: print and draw what the file holds")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--seeds", type=int, default=1, help="how many, default 1")
    parser.add_argument("--fit", type=int, choices=(3, 5), default=5, help="points of the parabola, default 5")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    numbers = {"layers": 2, "head-width": 32, "base-width": 128, "vocabulary": 1024, "context": 64, "batch": 8}
    numbers |= {"steps": 200, "heldout-windows": 256}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    for name, share in {"warmup": 0.05, "weight-decay": 1.0, "fallback": 2**-7}.items():
        parser.add_argument(f"--{name}", type=float, default=share, help=f"default {share}")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read(words)
    torch.set_num_threads(options.threads)
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    runs = Runs(options.out, asdict(settings))
    if not options.show:
        dataset = prepare(DataConfig(vocabulary=settings.vocabulary), cache_folder())
        while following := missing(runs, options.arms, options.widths, options.seeds):
            arm, width, k, seed = following
            line = train(arm, width, k, seed, settings, dataset)
            runs.add(line)
            print(
                f"{arm}, width {width}, lr {line['lr']:.3g}, seed {seed}: {line['loss']}, {line['seconds']} s",
                flush=True,
            )
            if options.once:
                return
        if options.once:
            raise SystemExit(NOTHING_MISSING)
    places = table(runs, options.arms, options.widths, options.seeds, options.fit)
    if any(places.values()):
        draw(runs, places, options.seeds, options.figure)


if __name__ == "__main__":
    main(sys.argv[1:])
