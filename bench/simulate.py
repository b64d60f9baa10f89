"""Is a simulated step as long as a real one, and does the simulation tell shapes apart better than the rule?

Measured: seconds a token of training steps of --shapes (layers x width) at --rows sequences of --context tokens: gradients and
the optimiser's step, as `shoestring plan` tries them out, not compiled. Beside them: what `plan.simulate` adds up from operators
timed alone, and the planner's rule. The error of a prediction of one shape from another's measurement is told too, as the planner
makes it: by the ratio of the two simulations, and by the ratio of the two rules.

--workers 2: a run of two processes that exchange after every step, and the bytes that each sends beside those simulated.

--json FILE: settings, environment and every figure. --smallest: to see that it works.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from shoestring import atomic
from shoestring.budget.ledger import Ledger
from shoestring.budget.machine import Machine, cache_folder, probe
from shoestring.config import build, merge
from shoestring.data.config import DataConfig
from shoestring.data.dataset import Dataset
from shoestring.data.prepare import prepare
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.optim.partition import partition
from shoestring.plan.pace import seconds_per_token
from shoestring.plan.simulate import OperatorTimes, WorkerLayout, WorkerLink, simulate
from shoestring.plan.sizes import flops_per_token
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import environment
from shoestring.train.trial import try_out


def configured(layers: int, width: int, rows: int, options: argparse.Namespace, vocabulary: int) -> RunConfig:
    model = {
        "layers": layers,
        "width": width,
        "heads": max(1, width // 64),
        "vocabulary": vocabulary,
        "context": options.context,
    }
    execution = {
        "compile": "none",
        "precision": options.precision,
        "loss": "plain",
        "attention": "flash",
        "device": "cpu",
    }
    asked = {"budget": "1h", "model": model, "train": {"batch": rows, "heldout_tokens": 1024}, "execution": execution}
    return build(RunConfig, merge({"optim": {"name": "muon_hypersphere", "lr": 0.02}}, asked))


def figures(
    config: RunConfig, dataset: Dataset, machine: Machine, times: OperatorTimes, seconds: float
) -> dict[str, float]:
    pace = try_out(config, dataset, machine, Ledger(), seconds, 3600.0)
    if pace is None:
        raise SystemExit(f"{seconds:g} s are not enough for a step of this shape: give more --seconds")
    with outline():
        model = Transformer(config.model)
    update = partition(model, config.optim, config.fallback).build().step_flops()
    given: dict[str, Any] = {
        "rows": config.train.batch,
        "context": config.model.context,
        "precision": config.execution.precision,
    }
    said = simulate(model, machine, times, update_flops=update, **given)
    rate = machine.matmul[machine.best_precision]
    rule = seconds_per_token(flops_per_token(config.model), config.model.width, rate)
    return {"measured": pace.per_token, "simulated": said.per_token, "rule": rule}


def two_processes(config: RunConfig, machine: Machine, times: OperatorTimes, workers: int) -> dict[str, float]:
    """Bytes that a worker sends a step, and the seconds of a step that it computes."""
    model, execution = config.model, config.execution
    words = [
        *(f"--model.{name}={getattr(model, name)}" for name in ("layers", "width", "heads", "context")),
        f"--train.batch={config.train.batch * workers}", "--train.heldout_tokens=1024", "--train.evaluate_every=1",
        f"--workers={workers}", "--sync=diloco", "--sync.every=1", "--sync.average=scatter",
        f"--execution.precision={execution.precision}", "--execution.compile=none", "--execution.loss=plain",
        f"--budget={20 * config.train.batch * workers * model.context}tok",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "shoestring", "train", "--out", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        summary = json.loads((folder / "summary.json").read_text())
    with outline():
        built = Transformer(model)
    layout, rows = WorkerLayout(data=workers), config.train.batch * workers
    given: dict[str, Any] = {"rows": rows, "context": model.context, "precision": execution.precision}
    said = simulate(built, machine, times, layout=layout, link=WorkerLink(1e9), **given)
    return {
        "sent": summary["exchanges"]["sent"] / summary["steps"],
        "sent_simulated": said.sent,
        "compute": summary["seconds_by_cause"]["compute"] / summary["steps"],
        "compute_simulated": said.seconds - said.by_cause["exchange of copies"],
    }


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=["2x64", "3x128", "4x192", "4x256", "6x320"], help="layers x width"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 16], help="sequences of a step, default 4 16")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each shape's steps, default %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="of the run of several processes; 1: none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--smallest", action="store_true")
    options = parser.parse_args(words)
    if options.smallest:
        options.shapes, options.rows, options.context, options.seconds = ["1x64", "2x64"], [2], 32, 60.0
    dataset, machine = prepare(DataConfig(), cache_folder()), probe()
    times, found = OperatorTimes.of(machine), []
    for shape, rows in itertools.product(options.shapes, options.rows):
        layers, width = map(int, shape.split("x"))
        config = configured(layers, width, rows, options, dataset.tokenizer.vocabulary)
        one = {"shape": shape, "rows": rows, **figures(config, dataset, machine, times, options.seconds)}
        found.append(one)
        print(
            f"{shape:>8} {rows:4} rows: {1 / one['measured']:10,.0f} tok/s measured, simulated "
            f"{one['simulated'] / one['measured']:.2f} of its seconds, by rule {one['rule'] / one['measured']:.2f}",
            flush=True,
        )
    ratios = {}
    for way in ("simulated", "rule"):
        errors = [
            abs(a["measured"] * b[way] / a[way] / b["measured"] - 1)
            for a, b in itertools.permutations(found, 2)
            if a["rows"] == b["rows"]
        ]
        if errors:
            ratios[way] = mean(errors)
            print(f"one shape from another's measurement, {way}: {mean(errors):.1%} off, mean of {len(errors)}")
    crew = None
    if options.workers > 1:
        layers, width = map(int, options.shapes[0].split("x"))
        config = configured(layers, width, options.rows[0], options, dataset.tokenizer.vocabulary)
        crew = two_processes(config, machine, times, options.workers)
        print(f"{options.workers} processes: " + ", ".join(f"{name} {value:.4g}" for name, value in crew.items()))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        content = {
            "settings": settings, "environment": environment(machine), "shapes": found, "from_another": ratios, "processes": crew,
        }  # fmt: skip
        atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
