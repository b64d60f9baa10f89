"""Milliseconds of a training step on a quiet machine and beside a busy process, by how OpenMP threads wait for each other.

Measured: steps of the plan for two minutes (or of --layers, --width, --batch) on the embedded corpus, in a process of its own
for each way of waiting:

    library    as libgomp has it: threads spin for milliseconds at each barrier
    passive    OMP_WAIT_POLICY=PASSIVE: threads sleep
    SPINS      GOMP_SPINCOUNT=SPINS, for each of --spins
    shoestring as `shoestring train` has it: spin, and sleep while other processes need the cores

The processes are all there at once, and only one computes at a time. A round has each take --steps steps quiet, in turn, then
each as many beside --busy endless loops, which are processes of their own, started for the round. So all ways share whatever
else the machine does. A median is of the steps of all rounds. After the loops are begun, and after they have ended, each way
first takes steps for --settle seconds that are not counted: 'reacting' says how long those steps took at most.

The loss of the last step must be the same for all ways, to the bit; the bench fails where it is not.

Run it on a machine with nothing else to do: 'others' says what other processes took in the quiet parts, in cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

WAYS = ("library", "passive", "shoestring")
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of quiet and busy steps, default 3")
    parser.add_argument("--steps", type=int, default=15, help="steps of each way in each half of a round, default 15")
    parser.add_argument("--busy", type=int, default=1, help="endless loops beside, default 1")
    parser.add_argument("--settle", type=float, default=2.5, help="seconds of steps before those counted, default 2.5")
    parser.add_argument("--most", type=float, default=30.0, help="seconds that a way's steps of half a round may take")
    parser.add_argument("--spins", type=int, nargs="*", default=[10_000, 1_000], help="spin counts to try too")
    parser.add_argument("--layers", type=int, default=3, help="default 3")
    parser.add_argument("--width", type=int, default=128, help="default 128")
    parser.add_argument("--heads", type=int, default=4, help="default 4")
    parser.add_argument("--batch", type=int, default=16, help="sequences of 256 tokens, default 16")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, environment and every step there")
    parser.add_argument("--child", metavar="WAY", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if min(options.rounds, options.steps, options.busy) < 1:
        parser.error("--rounds, --steps and --busy are each at least 1")
    return options


# ---- a way of waiting, in a process of its own: a line of JSON in, a line out


def child(options: argparse.Namespace) -> None:
    import torch
    from sides import Ours

    from shoestring.budget import busy_waiting
    from shoestring.budget.budget import Budget
    from shoestring.budget.machine import cache_folder, probe
    from shoestring.config import Choice, build
    from shoestring.data.config import DataConfig
    from shoestring.data.prepare import prepare
    from shoestring.model.config import ModelConfig
    from shoestring.train.allocator import keep_freed_memory
    from shoestring.train.assembly import assemble
    from shoestring.train.config import RunConfig
    from shoestring.train.sections import ExecutionConfig, TrainConfig

    keep_freed_memory()
    if options.child == "shoestring":
        busy_waiting.begin()
    dataset = prepare(DataConfig(), cache_folder())
    precision = probe().best_precision if options.precision == "auto" else options.precision
    attention = "chunked" if precision == "bfloat16" else "flash"
    fixed = {"device": "cpu", "compile": "none", "loss": "plain", "threads": torch.get_num_threads()}
    shape = {name: getattr(options, name) for name in ("layers", "width", "heads")}
    config = RunConfig(
        budget=Budget(tokens=1e9),  # ends nothing here: the steps are counted
        model=ModelConfig(vocabulary=dataset.tokenizer.vocabulary, context=256, **shape),
        optim=Choice.of("optim", "muon_hypersphere"),
        train=TrainConfig(batch=options.batch),
        execution=build(ExecutionConfig, {"precision": precision, "attention": attention, **fixed}),
    )
    ours = Ours(assemble(config, dataset), options.batch)
    ours(2)
    print(json.dumps({"ready": torch.get_num_threads(), "precision": precision}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began, settling = time.monotonic(), [0.0]
        while time.monotonic() - began < asked["settle"]:
            settling.append(ours(1))
        began, steps = time.monotonic(), list[float]()
        while len(steps) < asked["steps"] and (not steps or time.monotonic() - began < asked["most"]):
            steps.append(ours(1))
        found = {"steps": steps, "reacting": max(settling), "now": busy_waiting.policy().get("now")}
        print(json.dumps(found | {"losses": ours.losses}), flush=True)


class Way:
    """A process that takes steps when asked."""

    def __init__(self, name: str, words: Sequence[str]) -> None:
        self.name = name
        surroundings = {key: value for key, value in os.environ.items() if key not in CHOICES}
        if name == "passive":
            surroundings["OMP_WAIT_POLICY"] = "PASSIVE"
        if name.isdigit():
            surroundings["GOMP_SPINCOUNT"] = name
        command = [sys.executable, __file__, *words, "--child", name]
        self.process = subprocess.Popen(
            command, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = self._answer()
        self.quiet, self.busy = list[float](), list[float]()
        self.reacting: dict[str, list[float]] = {"quiet": [], "busy": []}
        self.losses: list[float] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of '{self.name}' has ended with status {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def steps(self, options: argparse.Namespace, half: str) -> None:
        assert self.process.stdin is not None
        asked = {"steps": options.steps, "settle": options.settle, "most": options.most}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        found = self._answer()
        getattr(self, half).extend(found["steps"])
        self.reacting[half].append(found["reacting"])
        self.losses = found["losses"]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def loops(count: int) -> Iterator[None]:
    """Endless loops in processes of their own."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
        for each in running:
            each.wait()


def others_now(seconds: float = 1.0) -> float:
    from shoestring.budget.busy_waiting import others, read_load

    before = read_load()
    time.sleep(seconds)
    return others(before, read_load())


def figures(ways: Sequence[Way]) -> dict[str, Any]:
    """Medians in milliseconds, against the library's own quiet steps, and whether all losses agree."""
    base = median(next(way for way in ways if way.name == "library").quiet)
    common = min(len(way.losses) for way in ways)
    found: dict[str, Any] = {
        "same_bits": len({tuple(way.losses[:common]) for way in ways}) == 1,
        "compared_steps": common,
    }
    for way in ways:
        quiet, busy = median(way.quiet), median(way.busy)
        found[way.name] = {
            "quiet_ms": 1e3 * quiet,
            "busy_ms": 1e3 * busy,
            "lost_when_quiet": quiet / base - 1,
            "slower_when_busy": busy / base,
            "reacting_ms": 1e3 * max(way.reacting["busy"]),
        }
    return found


def main(words: Sequence[str]) -> None:
    options = read(words)
    if options.child:
        child(options)
        return
    names = [*WAYS, *map(str, options.spins)]
    ways = [Way(name, words) for name in names]
    quietness = []
    try:
        for number in range(options.rounds):
            quietness.append(others_now())
            order = ways[number % len(ways) :] + ways[: number % len(ways)]  # none is always the first
            for way in order:
                way.steps(options, "quiet")
            with loops(options.busy):
                for way in order:
                    way.steps(options, "busy")
    finally:
        for way in ways:
            way.end()
    found = figures(ways)
    show(ways, found, quietness, options)
    if options.json:
        from shoestring import atomic
        from shoestring.budget.machine import probe
        from shoestring.train.run_folder import environment

        settings = {key: value for key, value in vars(options).items() if key not in ("json", "child")}
        raw = {way.name: {"quiet": way.quiet, "busy": way.busy, "reacting": way.reacting} for way in ways}
        content = {"settings": settings, "environment": environment(probe()), "others": quietness, **found}
        atomic.write_text(options.json, json.dumps(content | {"seconds": raw}, indent=1) + "\n")
    if not found["same_bits"]:
        raise SystemExit("the losses differ between the ways of waiting: they must not")


def show(ways: Sequence[Way], found: dict[str, Any], quietness: list[float], options: argparse.Namespace) -> None:
    about = ways[0].about
    print(f"{about['ready']} threads, {about['precision']}; beside {options.busy} endless loops when busy")
    print(f"others took {max(quietness):.2f} cores at most in the quiet parts")
    print(f"{'':12}{'quiet':>10}{'busy':>10}{'lost':>9}{'slower':>9}{'reacting':>11}")
    for way in ways:
        each = found[way.name]
        print(
            f"{way.name:12}{each['quiet_ms']:7.0f} ms{each['busy_ms']:7.0f} ms{each['lost_when_quiet']:9.1%}"
            f"{each['slower_when_busy']:8.2f}x{each['reacting_ms']:8.0f} ms"
        )
    same = "the same" if found["same_bits"] else "NOT the same"
    print(f"the losses of {found['compared_steps']} steps are {same} for all, to the bit")


if __name__ == "__main__":
    main(sys.argv[1:])
