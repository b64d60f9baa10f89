"""CheckFree against checkpoint restart: a pipeline of four processes whose stages are killed, at the same wall-clock or tokens.

For each set of stages that may fail (--struck: 'inner', as CheckFree cannot rebuild the ends; 'all'), rate and seed, every
policy trains the same model from the same first weights on the same batches for --minutes, while stages are killed with
kill -9 by one trace, the same seconds for every policy. A fault that comes while the last is being recovered from waits.
The rate is the probability that a stage fails in an hour, and --hour seconds stand for one: with about 50 steps in it
the chances a step are those of the paper's simulation (0.001 at 5 %, 0.002 at 10 %). What is measured:

* the clock starts when all processes stand, and its time decides the learning rate (warm up over 2 %, constant, linear to
  zero over the last 20 %) and the end. Saving, copying, starting a new process and rolling back are all on it; the
  replacement machine is there at once and storage is the local disk (--download adds seconds of a far one to a restart);
* loss: on held-out text, in the weights at the end; goodput: the share of the tokens trained on that the final weights are
  made of; useful: the share of the time that went into steps that stand.

With --tokens the tokens given out to train on take the place of the clock, those of steps that are rolled back or repeated
included: progress, end and faults go by them, --hour counts steps, and a fault comes between two steps. What is measured
is then the loss alone, and does not depend on what else the machine does.

Runs that are there are not made again. Four processes of one thread each; by the clock, run it on a machine with nothing
else to do.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from shoestring import atomic
from shoestring.budget.machine import cache_folder
from shoestring.config import Choice
from shoestring.data.config import DataConfig
from shoestring.data.prepare import prepare
from shoestring.data.windows import Windows
from shoestring.model.config import ModelConfig
from shoestring.model.stages import cut
from shoestring.model.transformer import Transformer
from shoestring.sync.pipeline.batch import MicroBatch
from shoestring.sync.pipeline.engine import Pipeline
from shoestring.sync.pipeline.faults import Fault, FaultInjector, draw_faults

STAGES = 4
POLICIES = ("checkpoint", "checkfree", "checkfree_plus", "redundant")
WARMUP, DECAY = 0.02, 0.2


def adamw(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    groups = [
        {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.95))


class Text:
    """The batches of a run, by step, and held-out ones."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        dataset = prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
        self.train = Windows(dataset.train, options.context, seed)
        self.heldout = Windows(dataset.heldout, options.context)
        self.rows, self.micros, self.heldout_rows = options.batch, options.micros, options.heldout_rows

    def batches(self, step: int) -> list[MicroBatch]:
        batch = self.train.batch(step * self.rows, self.rows)
        pairs = zip(batch.inputs.values.chunk(self.micros), batch.targets.chunk(self.micros), strict=True)
        return [MicroBatch(inputs, targets) for inputs, targets in pairs]

    def evaluation(self) -> MicroBatch:
        batch = self.heldout.batch(0, min(self.heldout_rows, len(self.heldout)))
        return MicroBatch(batch.inputs.values, batch.targets)


def lr_factor(progress: float) -> float:
    return min(1.0, progress / WARMUP, max(0.0, 1 - progress) / DECAY)


def recovery(policy: str, options: argparse.Namespace) -> Any:
    own = {"every": options.every, "download_seconds": options.download} if policy == "checkpoint" else {}
    return Choice.of("sync", policy, kind="recovery", **own).build()


def train_by_the_clock(pipeline: Pipeline, faults: Sequence[Fault], seconds: float) -> list[Fault]:
    """Steps for so many seconds, a fault at its second. The faults that happened."""
    injector, began = FaultInjector(pipeline, faults), time.perf_counter()
    injector.start()
    while (elapsed := time.perf_counter() - began) < seconds:
        pipeline.train_step(lr_factor(elapsed / seconds))
    injector.stop()
    return injector.done


def train_by_tokens(pipeline: Pipeline, faults: Sequence[Fault], tokens: int) -> list[Fault]:
    """Steps until so many tokens were given out, a fault before the step that takes its token. The faults that happened."""
    left, done = list(faults), list[Fault]()
    while (seen := pipeline.accounts.tokens_seen) < tokens:
        if left and left[0].at <= seen:
            done.append(left.pop(0))
            with contextlib.suppress(ProcessLookupError):  # it may have died by itself
                os.kill(pipeline.processes()[done[-1].stage], signal.SIGKILL)
        pipeline.train_step(lr_factor(seen / tokens))
    return done


def run(options: argparse.Namespace, struck: str, rate: float, seed: int, policy: str) -> dict[str, Any]:
    """One policy's run of one trace."""
    text, a_step = Text(options, seed), options.batch * options.context
    extent = options.tokens or 60 * options.minutes
    hour, gap = (each * a_step if options.tokens else each for each in (options.hour, options.gap))
    torch.manual_seed(seed)
    shape = {"layers": options.layers, "width": options.width, "heads": options.heads, "context": options.context}
    model = Transformer(ModelConfig(vocabulary=options.vocabulary, tied=False, **shape))
    first, stages, last = cut(model, STAGES)
    may_fail = range(STAGES) if struck == "all" else range(1, STAGES - 1)
    faults = draw_faults(rate, hour=hour, seconds=extent, stages=may_fail, seed=seed, gap=gap)
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        pipeline = Pipeline(
            first,
            stages,
            last,
            optimizer=partial(adamw, lr=options.lr),
            batches=text.batches,
            recovery=recovery(policy, options),
            clip=1.0,
            folder=Path(scratch),
        )
        with pipeline:
            began = time.perf_counter()
            done = (train_by_tokens if options.tokens else train_by_the_clock)(pipeline, faults, extent)
            elapsed = time.perf_counter() - began
            sent = pipeline.bytes_by_role()
            pipeline.collect()
    heldout = text.evaluation()
    with torch.no_grad():
        x = first(heldout.inputs)
        for stage in stages:
            x = stage(x)
        loss = float(last(x, heldout.targets))
    accounts = pipeline.accounts
    return {
        "struck": struck,
        "rate": rate,
        "seed": seed,
        "policy": policy,
        "loss": loss,
        "steps": pipeline.step,
        "seconds": elapsed,
        "failures": len(done),
        "tokens": {
            "seen": accounts.tokens_seen,
            "useful": accounts.tokens_useful,
            "discarded": accounts.tokens_discarded,
        },
        "goodput": accounts.goodput,
        "useful_time": accounts.seconds["useful"] / elapsed,
        "seconds_by_cause": dict(accounts.seconds),
        "steps_per_hour_equivalent": options.hour * len(accounts.steps) / max(accounts.seconds["useful"], 1e-9),
        "bytes_by_role": dict(sent),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "faults": [[fault.at, fault.stage] for fault in done],
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """The means over the seeds, and the difference from checkpoint restart in pairs of equal seed."""
    lines = [
        f"{'struck':7}{'rate':>6} {'policy':15}{'loss':>8}{'vs checkpoint':>15}{'goodput':>9}{'useful':>8}{'failures':>10}"
    ]
    for struck, rate, policy in dict.fromkeys((one["struck"], one["rate"], one["policy"]) for one in found):
        mine = [r for r in found if (r["struck"], r["rate"], r["policy"]) == (struck, rate, policy)]
        base = {r["seed"]: r for r in found if (r["struck"], r["rate"], r["policy"]) == (struck, rate, "checkpoint")}
        gaps = [100 * (one["loss"] / base[one["seed"]]["loss"] - 1) for one in mine if one["seed"] in base]
        against = f"{mean(gaps):+.2f} %" if gaps else ""
        average = {key: mean(one[key] for one in mine) for key in ("loss", "goodput", "useful_time", "failures")}
        lines.append(
            f"{struck:7}{rate:6.0%} {policy:15}{average['loss']:8.4f}{against:>15}{average['goodput']:9.1%}"
            f"{average['useful_time']:8.1%}{average['failures']:10.1f}"
        )
    return "\n".join(lines)


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="of each run, default 4")
    parser.add_argument("--tokens", type=int, default=0, help="of each run, in the place of --minutes")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.10], help="failures of a stage an hour")
    parser.add_argument(
        "--policies", nargs="+", choices=POLICIES, default=["checkpoint", "checkfree", "checkfree_plus"]
    )
    parser.add_argument("--struck", nargs="+", choices=("inner", "all"), default=["inner", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--hour", type=float, default=8.0, help="seconds, or steps with --tokens, that stand for an hour; default 8"
    )
    parser.add_argument(
        "--gap", type=float, default=2.0, help="seconds, or steps, between faults of neighbours, at least; default 2"
    )
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints, default 100")
    parser.add_argument("--download", type=float, default=0.0, help="seconds a restart waits for its files, default 0")
    for name, default in (("layers", 8), ("width", 64), ("heads", 4), ("context", 128), ("vocabulary", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--batch", type=int, default=16, help="sequences a step, default 16")
    parser.add_argument("--micros", type=int, default=4, help="micro-batches a step, default 4")
    parser.add_argument("--heldout-rows", type=int, default=256, help="held-out sequences, default 256")
    parser.add_argument("--lr", type=float, default=4e-3, help="AdamW's, default 4e-3")
    parser.add_argument("--out", type=Path, default=Path("runs/checkfree"), help="a file for each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(words)
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for struck in options.struck:
        for rate in options.rates:
            for seed in options.seeds:
                for policy in options.policies:
                    if policy == "checkfree" and struck == "all":
                        continue
                    path = options.out / f"{struck}-{rate:g}-{policy}-seed-{seed}.json"
                    if not path.exists():
                        atomic.write_text(path, json.dumps(run(options, struck, rate, seed, policy), indent=1))
                    found.append(json.loads(path.read_text()))
                    one = found[-1]
                    print(
                        f"{struck}, {rate:.0%}, seed {seed}, {policy}: loss {one['loss']:.4f}, goodput {one['goodput']:.1%}, "
                        f"{one['steps']} steps, {one['failures']} failures",
                        flush=True,
                    )
    print("\n" + table(found))
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        atomic.write_text(options.json, json.dumps({"settings": settings, "runs": found}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
