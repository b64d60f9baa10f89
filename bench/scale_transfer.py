"""Does the best learning rate of Muon on the sphere stay where it is as a model grows deeper, or trains on more tokens?

Two arms: HyperP with its rules for depth and tokens, and no rule at all, which at the base's size are one. The base is
trained at several learning rates, then a model of --times its layers, and the base for --times its tokens, under either
arm; all else as in width_transfer.py, whose search and fit this takes: as many rates as put the best of them two steps of
sqrt(2) away from both ends, the optimum by a parabola through those five points. What is asked: how far the optimum moves
from the base, in factors of sqrt(2); within 1 the rate transfers.

HyperP's rule for depth scales the residual branches and every learning rate, that for tokens every learning rate; without
a rule AdamW's, for embedding and gains, stays as the matrices' is searched, and under HyperP it is scaled.

Every run is a line of --out, and what is there is not run again.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from run_lines import RunLines
from width_transfer import FARTHEST, Curve, Settings, best, complete, optimum, rate, trained

from shoestring.budget.machine import cache_folder
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.schedule.transfer.hyperp import HyperP
from shoestring.schedule.transfer.rule import Transfer
from shoestring.schedule.transfer.standard import Standard

ARM = "muon-hyperp"
"""Of width_transfer: its optimiser and the rate at k = 0."""

CELLS = (("base", "either"), ("depth", "hyperp"), ("depth", "none"), ("tokens", "hyperp"), ("tokens", "none"))
"""(what has grown, by which rule), in the order in which they are run."""


def scaled(settings: Settings, grown: str, times: int) -> Settings:
    if grown == "depth":
        return replace(settings, layers=settings.layers * times)
    return replace(settings, steps=settings.steps * times) if grown == "tokens" else settings


def transfer(settings: Settings, rule: str) -> Transfer:
    """settings: of the base."""
    tokens = settings.steps * settings.batch * settings.context
    return (
        Standard()
        if rule == "none"
        else HyperP(base_width=settings.base_width, base_depth=settings.layers, base_tokens=tokens)
    )


def curve(runs: RunLines, grown: str, rule: str) -> Curve:
    lines = [line for line in runs.lines if (line["grown"], line["rule"]) == (grown, rule)]
    return {
        line["k"]: float("inf") if line["loss"] is None else line["loss"]
        for line in sorted(lines, key=lambda x: x["k"])
    }


def missing(runs: RunLines) -> tuple[str, str, int] | None:
    """(what has grown, by which rule, k) of the next run: about the best of the base first."""
    middle = 0
    for grown, rule in CELLS:
        found = curve(runs, grown, rule)
        if not complete(found):
            middle = best(found) if found else middle
            k = next(middle + d for d in (0, -1, 1, -2, 2) if middle + d not in found)
            if abs(k) > FARTHEST:
                raise SystemExit(f"{grown}, {rule}: no best learning rate up to {rate(ARM, k):g}")
            return grown, rule, k
        if grown == "base":
            middle = best(found)
    return None


def run(
    grown: str, rule: str, k: int, settings: Settings, options: argparse.Namespace, dataset: Dataset
) -> dict[str, Any]:
    own = scaled(settings, grown, options.times)
    line = trained(ARM, options.width, k, options.seed, own, dataset, transfer(settings, rule))
    del line["singular_values"], line["tokens_per_second"]
    return {"grown": grown, "rule": rule, **line, "settings": shared(settings, options)}


def shared(settings: Settings, options: argparse.Namespace) -> dict[str, Any]:
    return {**asdict(settings), "times": options.times, "width": options.width}


def table(runs: RunLines, times: int) -> None:
    places = {}
    for grown, rule in CELLS:
        found = curve(runs, grown, rule)
        if not complete(found):
            print(f"{grown:7} {rule:7} not complete, {len(found)} runs")
            continue
        places[grown, rule] = at = optimum(found, 5)
        moved = at - places["base", "either"] if ("base", "either") in places else 0.0
        values = " ".join(f"{rate(ARM, k):.2g}:{loss:.4f}" for k, loss in found.items())
        at_base = round(places["base", "either"])
        kept = f", at the base's best rate {found[at_base] - min(found.values()):+.4f} nats" if at_base in found else ""
        word = "" if grown == "base" else f" ({times} times): {'transfers' if abs(moved) <= 1 else 'moves'}"
        print(
            f"{grown:7} {rule:7} best lr {rate(ARM, 0) * 2 ** (at / 2):.3g}, moved by {moved:+.2f}{word}{kept};  {values}"
        )


def main(words: Sequence[str] | None = None) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("evidence/scale-transfer/runs.jsonl"), help="default %(default)s"
    )
    parser.add_argument("--show", action="store_true", help="run nothing: print what the file holds")
    numbers = {
        "times": 4,
        "seed": 0,
        "width": 32,
        "layers": 1,
        "vocabulary": 1024,
        "context": 64,
        "batch": 8,
        "steps": 150,
    }
    numbers |= {"head-width": 16, "heldout-windows": 256}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    names = ("layers", "vocabulary", "context", "batch", "steps", "head_width", "heldout_windows")
    settings = Settings(
        **{name: getattr(options, name) for name in names},
        base_width=options.width,
        warmup=0.05,
        weight_decay=0.0,
        fallback=2**-7,
    )
    runs = RunLines(options.out, shared(settings, options))
    if not options.show:
        dataset = prepare(DataConfig(vocabulary=settings.vocabulary), cache_folder())
        while following := missing(runs):
            grown, rule, k = following
            line = run(grown, rule, k, settings, options, dataset)
            runs.add(line)
            print(f"{grown}, {rule}, lr {line['lr']:.3g}: {line['loss']}, {line['seconds']} s", flush=True)
    table(runs, options.times)


if __name__ == "__main__":
    main()
