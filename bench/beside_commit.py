"""Training by this code and by the code of another commit, in turn: is it slower than it was?

Measured: tokens per second of the same `shoestring train` as a user runs it, by the code of this checkout and by
that of --commit, which `git worktree` lays out in a scratch folder.

How: both runs are started, and stopped with SIGSTOP. Then each goes on for --slice seconds while the other is stopped, --rounds
times, in the order A B B A. Tokens are counted from the first to the last line that a run writes to metrics.jsonl within a
slice, so that neither reading data nor compiling nor a half step at the edge of a slice counts. The ratio of a round is that
of its two slices; the median of the rounds' ratios is told, and the range that holds 95 % of medians of resampled rounds.
Machines change their speed by the minute: runs made one after the other differ by more than what is looked for here.

Then both train --same-tokens tokens by the same plain way of computing, and the weights of their last checkpoints are
compared: the same code paths give the same bits. The losses of lines would not tell: each is the mean since the line
before, and when a line is written hangs on the clock.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.train.run_folder import environment

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"layers": 6, "width": 256, "heads": 4, "context": 256}
SHAPE = [*(f"--model.{name}={size}" for name, size in SIZES.items()), "--data.vocabulary=4096", "--train.batch=16"]
"""Of the model and its batch, unless other flags say otherwise: a plan for so many tokens would choose a large one."""
PLAIN = ("compile=none", "precision=float32", "attention=flash", "loss=plain", "threads=1")
"""How both compute where their bits are compared: nothing is measured and chosen."""
BEGUN = 3
"""Lines that a run has written before it is measured."""


class Run:
    """A training run in a process of its own, which works only when it is let."""

    def __init__(self, code: Path, folder: Path, words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "shoestring", "train", "--out", str(folder), *words]
        self.lines, self.output = folder / "metrics.jsonl", folder.with_suffix(".txt")
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder.parent,
                env={**os.environ, "PYTHONPATH": str(code / "src")},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def written(self) -> list[dict[str, Any]]:
        """The lines of its steps so far: a line now and then."""
        if not self.lines.is_file():
            return []
        text = self.lines.read_text()
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if line["kind"] == "train"]

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def check(self) -> None:
        """Raises: SystemExit where the run has ended."""
        if self.process.poll() is not None:
            raise SystemExit(f"a run ended before it was measured:\n{self.output.read_text()[-2000:]}")

    def slice(self, seconds: float) -> float:
        """Let it work so long. Returns its tokens per second."""
        self.check()
        before = len(self.written())
        self.signal(signal.SIGCONT)
        time.sleep(seconds)
        self.signal(signal.SIGSTOP)
        new = self.written()[before:]
        if len(new) < 3:
            raise SystemExit(f"{len(new)} lines in {seconds:g} s: give a longer --slice or a smaller model")
        first, last = new[0], new[-1]
        return float((last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"]))

    def end(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def checkout(commit: str, scratch: Path) -> Iterator[Path]:
    """The files of a commit, in a folder of their own."""
    folder = scratch / "commit"
    subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(folder), commit], cwd=ROOT, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def begin(code: Path, folder: Path, words: Sequence[str]) -> Run:
    """A run that has made its first steps, stopped."""
    run = Run(code, folder, words)
    while len(run.written()) < BEGUN:
        run.check()
        time.sleep(0.2)
    run.signal(signal.SIGSTOP)
    return run


def same_weights(codes: Mapping[str, Path], scratch: Path, words: Sequence[str]) -> bool:
    """Whether both codes train to the same bits. words: of `shoestring train`."""
    found = list[dict[str, torch.Tensor]]()
    for name, code in codes.items():
        folder = scratch / f"same-{name}"
        plain = [f"--execution.{setting}" for setting in PLAIN]
        command = [sys.executable, "-m", "shoestring", "train", "--out", str(folder), *words, *plain]
        env = {**os.environ, "PYTHONPATH": str(code / "src")}
        subprocess.run(command, cwd=scratch, env=env, check=True, stdout=subprocess.DEVNULL)
        found.append(load_file(max((folder / "checkpoints").iterdir()) / "model.safetensors"))
    ours, theirs = found
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """That which holds 95 % of the medians of resampled rounds."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[-51]


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", required=True, help="the other code")
    parser.add_argument("--rounds", type=int, default=24, help="slices of each, default 24")
    parser.add_argument("--slice", type=float, default=5.0, help="seconds of a slice, default 5")
    parser.add_argument("--same-tokens", type=int, default=100_000, help="of the runs whose weights are compared")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, machine and every figure there")
    options, more = parser.parse_known_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the runs, that lead sessions of their own
    asked = [*SHAPE, "--budget", "100Mtok", "--train.evaluate_every", "1", *more]
    with tempfile.TemporaryDirectory() as place, checkout(options.commit, Path(place)) as other:
        runs = dict[str, Run]()
        try:
            for name, code in {"this": ROOT, "other": other}.items():
                runs[name] = begin(code, Path(place) / name, asked)
            rates: dict[str, list[float]] = {name: [] for name in runs}
            for number in range(options.rounds):
                for name in list(runs)[:: 1 if number % 2 else -1]:
                    rates[name].append(runs[name].slice(options.slice))
        finally:
            for run in runs.values():
                run.end()
        fixed = [*SHAPE, "--budget", f"{options.same_tokens}tok", "--train.sample_tokens", "0", *more]
        same = same_weights({"this": ROOT, "other": other}, Path(place), fixed)
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    low, high = interval(ratios)
    found = {"ratio": median(ratios), "low": low, "high": high, "same_weights": same}
    print(f"this code makes {median(rates['this']):,.0f} tokens/s, {options.commit} {median(rates['other']):,.0f}")
    print(
        f"ratio {found['ratio']:.3f} ({low:.3f} to {high:.3f}); the weights are {'' if same else 'not '}the same bits"
    )
    if options.json:
        settings = {"commit": options.commit, "rounds": options.rounds, "slice": options.slice, "train": asked}
        everything = {"settings": settings, "environment": environment(probe()), **found, "tokens_per_second": rates}
        atomic.write_text(options.json, json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
