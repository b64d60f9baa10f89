"""Training throughput: Shoestring's loop and `transformers.Trainer` on one model, side by side in one process.

Measured: tokens per second of the same ~10 M-parameter Qwen3 (the same first weights, the same batches in the same order,
the same thread count), by default with fused AdamW on both sides, so that the loops are compared and not the optimisers.

How: after warm-up, rounds alternate: --steps of ours, the yardsticks, --steps of the Trainer's, inside one
`Trainer.train()` whose callback runs the others, so that both are warm and share whatever else the machine is doing. A
round is timed as a whole, fetching its batches included; ours reads them from the token store, the Trainer from memory.
The ratio is the median of the rounds' own ratios. Ours runs with what `execution` 'auto' decides at these shapes,
measured anew; the Trainer in bfloat16 where the machine's probe says that it pays, without evaluation, logging, checkpoints.

Shares, each of rates measured in the same round: of large matrix products in the machine's best precision; and of the
model's own shapes: the time that each linear layer's forward, input-gradient and weight-gradient product would take
alone, over the step's time. The operations are those of the linear layers; attention's (counted over the full square, of
which a causal kernel skips part) are in the one line that says so, the optimiser's are in none.

The process keeps the memory it frees, as `shoestring train` does, and the Trainer in it gains as much by that as ours:
--return-memory leaves the C library as it is, as a Trainer's own script would.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from breakdown import breakdown
from sides import Ours, Rounds, trainer
from yardsticks import large_matrices, products_seconds

from shoestring import atomic
from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.config import Choice
from shoestring.contract.cost import Shape, attention
from shoestring.data.config import DataConfig
from shoestring.data.prepare import prepare
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.train.allocator import keep_freed_memory
from shoestring.train.assembly import Parts, assemble
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import environment
from shoestring.train.sections import ExecutionConfig, TrainConfig
from shoestring.train.settling import settle


def configure(options: argparse.Namespace, machine: Machine, vocabulary: int, cache: Path) -> RunConfig:
    """The run of ours, nothing left open."""
    adamw = Choice.of("optim", "adamw", lr=options.lr)
    execution = ExecutionConfig(precision=options.precision, compile=options.compile)
    names = ("layers", "width", "heads", "context")
    model = ModelConfig(vocabulary=vocabulary, **{name: getattr(options, name) for name in names})
    settled = settle(execution, model, rows=options.batch, seconds=None, machine=machine, cache=cache)
    print(*settled.reasons, sep="\n")
    return RunConfig(
        budget=Budget.parse("1h"),  # ends nothing here: the steps are counted
        model=model,
        optim=adamw if options.optim == "adamw" else Choice.of("optim", options.optim),
        fallback=adamw,
        train=TrainConfig(batch=options.batch),
        execution=replace(settled.config, threads=torch.get_num_threads()),
    )


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"layers": 7, "width": 320, "heads": 5, "context": 256, "batch": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the tokenizer, default 4096")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side, default 5")
    parser.add_argument("--steps", type=int, default=8, help="steps a round, default 8")
    parser.add_argument("--warmup", type=int, default=4, help="steps of each before the rounds, default 4")
    parser.add_argument(
        "--optim", default="adamw", help="our optimiser, default adamw; another compares more than loops"
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW on both sides, default 1e-3")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"), help="of ours")
    parser.add_argument("--compile", default="auto", choices=("auto", "none", "blocks"), help="of ours")
    parser.add_argument("--trainer-compile", action="store_true", help="give the Trainer torch_compile=True")
    parser.add_argument("--return-memory", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument("--profile", action="store_true", help="also show where the time of our steps goes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options = parser.parse_args(words)
    if min(options.rounds, options.steps, options.warmup) < 1:
        parser.error("--rounds, --steps and --warmup are each at least 1")
    return options


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read(words)
    if not options.return_memory:
        keep_freed_memory()
    dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
    with tempfile.TemporaryDirectory() as scratch:  # its own cache: nothing measured at another time is used
        machine = probe(cache=Path(scratch), fresh=True)
        config = configure(options, machine, dataset.tokenizer.vocabulary, Path(scratch))
        parts = assemble(config, dataset)
        model = parts.model
        assert isinstance(model, Transformer)
        ours, seconds, large, alone = Ours(parts, options.batch), list[float](), list[float](), list[float]()
        total = options.warmup + options.rounds * options.steps
        bf16 = machine.best_precision == "bfloat16"
        theirs = trainer(model, ours, total, bf16, options, scratch)

        def between() -> None:
            if not ours.losses:
                ours(options.warmup)
            seconds.append(ours(options.steps))
            large.append(large_matrices(machine))
            alone.append(products_seconds(config, model))

        rounds = Rounds(options.warmup, options.steps, options.rounds, between)
        theirs.add_callback(rounds)
        theirs.train()
    losses = (ours.losses[-1], float(theirs.losses[-1]))
    shares = breakdown(parts, ours, options.steps, machine.device) if options.profile else {}
    measured = {"shoestring": seconds, "trainer": rounds.seconds, "products_of_one_step": alone}
    found = {"steps": total, "losses": losses, "breakdown": shares, "seconds": measured, "large_matrices": large}
    found |= {"execution": vars(config.execution), "trainer_precision": "bfloat16" if bf16 else "float32"}
    found |= figures(config, parts, options.steps, measured, large)
    show(machine, found, options)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        atomic.write_text(
            options.json, json.dumps({"settings": settings, "environment": environment(machine), **found})
        )


def figures(
    config: RunConfig, parts: Parts, steps: int, seconds: dict[str, list[float]], large: list[float]
) -> dict[str, Any]:
    """What the rounds come to. steps: in a round. seconds: of each round. large: FLOP/s of large matrices, each round."""
    model, batch, alone = config.model, config.train.batch, seconds["products_of_one_step"]
    square = model.layers * attention(batch, model.heads, model.context, model.context, model.head_width, True)
    linear = parts.model.cost(Shape(batch, model.context, backward=True)).flops - square
    sides = {}
    for name in ("shoestring", "trainer"):
        step = [taken / steps for taken in seconds[name]]
        share = median(linear / one / rate for one, rate in zip(step, large, strict=True))
        sides[name] = {
            "tokens_per_second": batch * model.context / median(step),
            "share_of_large": share,
            "share_of_large_with_attention": share * (linear + square) / linear,
            "share_of_own_shapes": median(least / one for least, one in zip(alone, step, strict=True)),
        }
    ratios = [theirs / ours for ours, theirs in zip(seconds["shoestring"], seconds["trainer"], strict=True)]
    return {
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "sides": sides,
        "ratio": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        "own_shapes": linear / median(alone),
        "step_flops": {"linear": linear, "attention": square},
    }


def show(machine: Machine, found: dict[str, Any], options: argparse.Namespace) -> None:
    execution, ratio, sides = found["execution"], found["ratio"], found["sides"]
    large, own = median(found["large_matrices"]) / 1e9, found["own_shapes"] / 1e9
    print(f"\n{machine.name}, {machine.threads} threads; {found['parameters'] / 1e6:.2f} M parameters")
    print("Shoestring: {}, {precision}, compile {compile}, loss {loss}".format(options.optim, **execution))
    compiled = "compiled" if options.trainer_compile else "not compiled"
    print(f"Trainer:    adamw_torch_fused, {found['trainer_precision']}, {compiled}\n")
    print(f"{'':54}{'Shoestring':>12}{'Trainer':>12}")
    rows = {
        "tokens per second, median of rounds": ("tokens_per_second", "12,.0f"),
        f"share of {large:.0f} GFLOP/s, large matrices, {machine.best_precision}": ("share_of_large", "12.1%"),
        "  the same, attention's operations counted": ("share_of_large_with_attention", "12.1%"),
        f"share of {own:.0f} GFLOP/s, the model's shapes, {execution['precision']}": ("share_of_own_shapes", "12.1%"),
    }
    for label, (key, form) in rows.items():
        print(f"{label:54}" + "".join(format(side[key], form) for side in sides.values()))
    print(f"{'loss of step ' + str(found['steps']):54}" + "".join(f"{loss:12.4f}" for loss in found["losses"]))
    least, most = ratio["least"], ratio["most"]
    print(
        f"{'ratio of tokens per second, median of paired rounds':54}{ratio['median']:12.3f} ({least:.3f} to {most:.3f})"
    )
    if found["breakdown"]:
        print("\nwhere the time of our step goes, profiled:")
    for group, share in found["breakdown"].items():
        print(f"  {group:52}{share:12.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
