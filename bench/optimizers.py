"""Muon and SOAP: Shoestring's beside those of heavyball and pytorch_optimizer, and what a step of them costs.

1. Equal steps. For each method and seed every side trains its own copy of one model: the same first weights, the same
batches of the embedded corpus, the same hyper-parameters (peers.py says what remains different), the same AdamW for what
is no matrix, the same schedule (WSD), gradients clipped at 1. The sides take turns at each step, in an order that
turns too, so that they share whatever else the machine is doing.

Only the step of the optimiser of the matrices is timed, and not in the first --warmup steps, when peers compile. Printed
for each side: the median step, and the mean of a step over rounds of ten, which has SOAP's refreshes in it (the median of
the rounds); the ratio is the median of the rounds' own ratios, peer over ours, over all seeds. The losses are those of
the last tenth of the training steps and of held-out text, after equal steps; 'apart' is how far a side's matrices
are from ours after the third step, as a share of how far ours moved: more than rounding, as the first gradients have so
low a rank that the polynomials of Muon and the null spaces of SOAP's first factors show.

2. Cost. A model of about 10 M parameters (--cost-layers, --cost-width) on batches of the size that `plan` gives such a
model (--cost-batch) under AdamW, Muon, Muon on the sphere and SOAP, each with what `execution` 'auto' decides, a step of
each in turn: milliseconds of the optimiser's whole step, and what it adds to a whole AdamW step (forward, backward,
optimiser).
"""

import argparse
import inspect
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from optimizer_cost import ROUND, cost, rounds, show_cost
from peers import DIFFERENCES, OPTIONS, PACKAGES, Build, Optimizers, builders, load, optimizers, versions
from sides import synchronise

from shoestring import atomic
from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.compare.statistics import paired
from shoestring.config import Choice
from shoestring.contract.objective import At
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.optim.muon import Muon
from shoestring.schedule.warmup import with_warmup
from shoestring.schedule.wsd import WSD
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.assembly import Parts, assemble
from shoestring.train.config import RunConfig
from shoestring.train.execution import prepare_blocks
from shoestring.train.run_folder import environment
from shoestring.train.sections import ExecutionConfig, TrainConfig
from shoestring.train.settling import settle
from shoestring.train.step import Stepper

CONFIDENCE = 0.95
POLAR = inspect.signature(Muon.__init__).parameters["polar"].default


class Side:
    """One implementation training its own model. seconds: of each timed step. losses: of every step."""

    def __init__(self, stepper: Stepper, made: Optimizers) -> None:
        self.stepper, self.made = stepper, made
        self.start = self._weights()
        self.seconds, self.losses = list[float](), list[float]()
        self.rates = [group["lr"] for group in made.both.param_groups]

    def step(self, batch: Any, factor: float, timed: bool) -> None:
        self.losses.append(self.stepper.gradients(batch, At(len(self.losses))).loss)
        # not by `base_lr` in the groups: heavyball has a key of that name too, and makes the present rate of it
        for group, rate in zip(self.made.both.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        synchronise()
        began = time.perf_counter()
        self.made.matrices.step()
        synchronise()
        if timed:
            self.seconds.append(time.perf_counter() - began)
        self.made.rest.step()
        self.made.both.zero_grad(set_to_none=True)

    def _weights(self) -> torch.Tensor:
        matrices = [p.detach() for group in self.made.matrices.param_groups for p in group["params"]]
        return torch.cat([matrix.flatten().float() for matrix in matrices])

    def moved(self) -> torch.Tensor:
        """How the matrices have changed, flat."""
        return self._weights() - self.start


def configure(options: argparse.Namespace, machine: Machine, vocabulary: int, cache: Path, part: str) -> RunConfig:
    """A run of the size of one part of the bench, nothing left open. part: '' or 'cost_'."""
    rows = getattr(options, f"{part}batch")
    sizes = {name: getattr(options, part + name) for name in ("layers", "width", "heads")}
    model = ModelConfig(vocabulary=vocabulary, context=options.context, **sizes)
    execution = ExecutionConfig(precision=options.precision, compile=options.compile)
    settled = settle(execution, model, rows=rows, seconds=None, machine=machine, cache=cache)
    print(*settled.reasons, sep="\n")
    adamw = Choice.of("optim", "adamw", lr=options.lr)
    return RunConfig(
        budget=Budget.parse("1h"),  # ends nothing here: the steps are counted
        model=model,
        optim=adamw,
        fallback=adamw,
        train=TrainConfig(batch=rows, heldout_tokens=options.heldout_tokens),
        execution=replace(settled.config, threads=torch.get_num_threads()),
    )


def sides_of(parts: Parts, config: RunConfig, makers: dict[str, Build], method: str) -> dict[str, Side]:
    """Each side on a model of its own with the weights of `parts`."""
    lr = config.fallback.options["lr"]
    sides = {}
    for name, build in makers.items():
        model = Transformer(config.model).to(config.execution.device)
        model.load_state_dict(parts.model.state_dict())
        prepare_blocks(model, config.execution)
        made = optimizers(model, build, OPTIONS[method], lr)
        stepper = Stepper(
            model,
            parts.stepper.objective,
            made.both,
            device=config.execution.device,
            precision=config.execution.precision,
            micro_batch=config.train.batch,
            clip=config.train.gradient_clip,
        )
        sides[name] = Side(stepper, made)
    return sides


def train(
    config: RunConfig, dataset: Dataset, makers: dict[str, Build], method: str, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """All sides of one method, one seed: seconds of the timed steps, losses, and how far apart."""
    torch.compiler.reset()  # each seed has models of its own; their graphs together would pass the compiler's limit
    parts = assemble(config, dataset)
    sides = sides_of(parts, config, makers, method)
    order, apart = list(sides), dict.fromkeys(sides, 0.0)
    schedule = with_warmup(WSD(), 0.05)
    for number in range(options.steps):
        batch = parts.source.batch(number * options.batch, options.batch)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            sides[name].step(batch, schedule((number + 1) / options.steps), number >= options.warmup)
        if number == 2:
            ours = sides["shoestring"].moved()
            apart = {name: float((side.moved() - ours).norm() / ours.norm()) for name, side in sides.items()}
    tail = max(1, options.steps // 10)
    return {
        name: {
            "seconds": side.seconds,
            "training_loss": mean(side.losses[-tail:]),
            "heldout_loss": parts.evaluator(side.stepper.model).loss,
            "losses": side.losses,
            "apart": apart[name],
        }
        for name, side in sides.items()
    }


def compared(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The figures of each side over the seeds. runs: of `train`, one a seed."""
    found = {}
    for name in runs[0]:
        each = [rounds(run[name]["seconds"]) for run in runs]
        pairs = [
            theirs / ours
            for run, taken in zip(runs, each, strict=True)
            for theirs, ours in zip(taken, rounds(run["shoestring"]["seconds"]), strict=True)
        ]
        found[name] = {
            "median_ms": 1e3 * median(second for run in runs for second in run[name]["seconds"]),
            "mean_ms": 1e3 * median(taken for seed in each for taken in seed),
            "ratio": {"median": median(pairs), "least": min(pairs), "most": max(pairs)},
            "apart": mean(run[name]["apart"] for run in runs),
        }
        for loss in ("training_loss", "heldout_loss"):
            own = [run[name][loss] for run in runs]
            above = [a - run["shoestring"][loss] for a, run in zip(own, runs, strict=True)]
            shown = paired(above, CONFIDENCE, mean(own))
            found[name][loss] = {"mean": mean(own), "seeds": own, "above_ours": mean(above), "interval": shown.interval}
    return found


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 4, "width": 256, "heads": 4, "context": 256, "batch": 8}
    for name, default in {**sizes, "cost-layers": 7, "cost-width": 320, "cost-heads": 5, "cost-batch": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the tokenizer, default 4096")
    parser.add_argument("--methods", nargs="*", default=["muon", "soap"], choices=("muon", "soap"))
    parser.add_argument("--peers", nargs="*", default=list(PACKAGES), choices=tuple(PACKAGES))
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds, default 3")
    parser.add_argument("--steps", type=int, default=200, help="steps of each side and seed, default 200")
    parser.add_argument("--warmup", type=int, default=20, help="of them untimed, default 20")
    parser.add_argument("--cost-steps", type=int, default=40, help="timed steps of the second part, 0 for none")
    parser.add_argument("--heldout-tokens", type=int, default=65536, help="held-out targets, default 65536")
    parser.add_argument("--lr", type=float, default=3e-3, help="of AdamW on every side, default 3e-3")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"), help="of the passes")
    parser.add_argument("--compile", default="auto", choices=("auto", "none", "blocks"), help="of the models' blocks")
    parser.add_argument("--compile-ours", action="store_true", help="compile = True for our Muon and SOAP")
    parser.add_argument("--muon-polar", default=POLAR, help=f"polar factor of our Muon, default {POLAR} as in Muon")
    parser.add_argument("--muon-precision", default="auto", choices=("auto", "float32", "bfloat16"), help="of our Muon")
    parser.add_argument(
        "--heavyball-compile",
        default="default",
        help="its mode of torch.compile, 'none' for eager; its own, max-autotune-no-cudagraphs, takes minutes on a CPU",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options = parser.parse_args(words)
    if options.methods and (options.seeds < 1 or options.steps - options.warmup < ROUND or options.warmup < 0):
        parser.error(f"at least one seed and {ROUND} steps beyond --warmup are needed")
    if options.cost_steps and options.cost_steps < ROUND:
        parser.error(f"--cost-steps is 0 or at least {ROUND}")
    return options


def show(method: str, sides: dict[str, dict[str, Any]], known: dict[str, str]) -> None:
    print(f"\n{method}, {', '.join(f'{key} {value:g}' for key, value in OPTIONS[method].items())}")
    heads = ("median ms", "mean ms", "ratio to ours", "training", "held-out", "above ours", "95 % of that", "apart")
    wide = {"ratio to ours": 24, "95 % of that": 20}
    print(f"{'':26}" + "".join(f"{head:>{wide.get(head, 11)}}" for head in heads))
    for name, side in sides.items():
        ratio = side["ratio"]
        spread = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
        interval = side["heldout_loss"]["interval"]
        between = f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "-"
        print(
            f"{name + ' ' + known.get(name, ''):26}{side['median_ms']:11.2f}{side['mean_ms']:11.2f}{spread:>24}"
            f"{side['training_loss']['mean']:11.4f}{side['heldout_loss']['mean']:11.4f}"
            f"{side['heldout_loss']['above_ours']:+11.4f}{between:>20}{side['apart']:11.3f}"
        )
    for name in sides:
        if (method, name) in DIFFERENCES:
            print(f"  {name} differs: {DIFFERENCES[method, name]}")


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read(words)
    try:
        for name in options.peers if options.methods else ():
            load(name)
    except UsageError as error:
        sys.exit(str(error))
    warnings.filterwarnings("ignore", message="Learning rate changed between steps")  # heavyball: that is the schedule
    keep_freed_memory()
    known = versions(options.peers)
    found: dict[str, Any] = {"versions": {"torch": torch.__version__, **known}, "methods": {}}
    dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
    with tempfile.TemporaryDirectory() as scratch:  # its own cache: nothing measured at another time is used
        machine = probe(cache=Path(scratch), fresh=True)
        print(f"{machine.name}, {machine.threads} threads")
        config = configure(options, machine, dataset.tokenizer.vocabulary, Path(scratch), "")
        for method in options.methods:
            makers = builders(
                method,
                options.peers,
                polar=options.muon_polar,
                precision=options.muon_precision,
                compiled=options.compile_ours,
                heavyball_compile=options.heavyball_compile,
            )
            runs = [
                train(replace(config, seed=seed), dataset, makers, method, options) for seed in range(options.seeds)
            ]
            sides = compared(runs)
            show(method, sides, known)
            found["methods"][method] = {"options": OPTIONS[method], "sides": sides, "runs": runs}
        if options.cost_steps:
            large = configure(options, machine, dataset.tokenizer.vocabulary, Path(scratch), "cost_")
            found["cost"] = cost(large, dataset, options)
            show_cost(found["cost"])
        found["execution"] = vars(config.execution)
        if options.json:
            settings = {key: value for key, value in vars(options).items() if key != "json"}
            content = {"settings": settings, "environment": environment(machine), **found}
            atomic.write_text(options.json, json.dumps(content))


if __name__ == "__main__":
    main(sys.argv[1:])
