"""The arms of slow_link.py: what each trains, over which links, and what was seen."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tomli_w
from link_counters import Sampler
from link_model import Exchange, Link, Predicted, all_reduce_bytes, all_reduce_seconds, data_parallel, outer_loop
from link_model import parameters as count_parameters
from links import Links

from shoestring.config import Tree, build, merge, read_toml
from shoestring.errors import ShoestringError
from shoestring.sync.diloco import DiLoCo
from shoestring.sync.frame import TOKEN, new_token
from shoestring.train.config import RunConfig

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "sync"
WORKERS = 4
PATIENCE = 300.0


@dataclass(frozen=True)
class Way:
    """A way to train together. recipe: in recipes/sync, laid over its synchronous.toml. name: in tables."""

    name: str
    recipe: str

    @property
    def ddp(self) -> bool:
        return self.recipe == "synchronous"


WAYS = {
    "ddp": Way("DDP", "synchronous"),
    "diloco": Way("DiLoCo, float32", "diloco"),
    "muloco_2bit": Way("MuLoCo, 2 bits", "muloco_2bit"),
    "streaming_muloco_2bit": Way("Streaming MuLoCo, 2 bits", "streaming_muloco_2bit"),
}


@dataclass(frozen=True)
class Shape:
    """What all arms train, and how their outer loops go. batch: sequences a step, of all workers."""

    layers: int = 3
    width: int = 128
    context: int = 128
    vocabulary: int = 1568
    batch: int = 32
    fragments: int = 4
    overlap: int = 5

    @property
    def step_tokens(self) -> int:
        return self.batch * self.context

    def tree(self, way: Way, every: int, tokens: int) -> Tree:
        """The configuration of a run of one of the ways."""
        asked = merge(read_toml(RECIPES / "synchronous.toml"), read_toml(RECIPES / f"{way.recipe}.toml"))
        sync: Tree = {"every": every}
        if way.ddp:
            sync["name"] = (
                "diloco"  # a configuration of several workers has some outer loop; data parallelism has no use for it
            )
        elif "fragments" in asked["sync"]:
            sync |= {"fragments": self.fragments, "overlap": self.overlap}
        model = {"layers": self.layers, "width": self.width, "context": self.context}
        train = {"batch": self.batch, "evaluate_every": 1.0, "checkpoint_every": 1e6, "sample_tokens": 0}
        own = {"workers": WORKERS, "transport": "distributed", "budget": f"{tokens}tok", "sync": sync}
        return merge(asked, {**own, "model": model, "train": train, "data": {"vocabulary": self.vocabulary}, "execution": {"device": "cpu"}})

    def outer(self, way: Way, every: int) -> DiLoCo:
        """An outer loop around such a model, of one worker: its shapes, fragments and schedule are those of the arm."""
        config = build(RunConfig, merge(self.tree(way, every, 1), {"model": {"vocabulary": self.vocabulary}}))
        return config.sync.build().attach(config.model.build(), None, roles={})


@dataclass(frozen=True)
class Arm:
    """One measurement. steps: taken, of `asked`, where the rest is worked out from them. rate: bits a second, None: unshaped.
    traced: how the bytes left over time is kept."""

    way: str
    every: int
    steps: int
    asked: int
    rate: float | None = None
    delay: float = 0.0
    traced: bool = False

    @property
    def key(self) -> str:
        where = "unshaped" if self.rate is None else f"{self.rate / 1e6:g} Mbit/s"
        where += (f", {1000 * self.delay:g} ms" if self.delay else "") + (", traced" if self.traced else "")
        return f"{self.way}, H = {self.every}, {self.asked} steps, {where}"


class Bytes:
    """What the model says of one way's bytes and seconds. outer: None for DDP."""

    def __init__(self, shape: Shape, way: Way, every: int) -> None:
        self.every = every
        outer = shape.outer(way, every)
        self.parameters, self.outer = count_parameters(outer.model), None if way.ddp else outer
        self.exchanges = [Exchange.of(fragment, outer.codec, WORKERS) for fragment in outer.fragments]

    def sent(self, steps: int) -> float:
        """Bytes that each worker sends in so many steps."""
        if self.outer is None:
            return steps * all_reduce_bytes(4 * self.parameters, WORKERS)
        counts = self.predicted(steps, 1.0, Link(math.inf)).exchanges
        return sum(count * exchange.sent for count, exchange in zip(counts, self.exchanges, strict=True))

    def predicted(self, steps: int, step_seconds: float, link: Link) -> Predicted:
        if self.outer is None:
            return data_parallel(steps, step_seconds, all_reduce_seconds(4 * self.parameters, WORKERS, link))
        return outer_loop(
            steps,
            step_seconds,
            [exchange.seconds(link) for exchange in self.exchanges],
            every=self.every,
            offsets=self.outer.offsets,
            overlap=self.outer.overlap,
        )


def _wait(
    net: Links, workers: Sequence["subprocess.Popen[Any]"], outputs: Sequence[Path], look: Callable[[], None]
) -> None:
    """Until all have ended. Raises: ShoestringError, with a worker's last line, where one fails: the others are ended then."""
    while True:
        states = [worker.poll() for worker in workers]
        for rank, state in enumerate(states):
            if state:
                lines = outputs[rank].read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise ShoestringError(f"worker {rank} ended with status {state}: {lines[-1]}")
        if all(state is not None for state in states):
            return
        look()
        time.sleep(0.05)


def run(net: Links, shape: Shape, arm: Arm) -> dict[str, Any]:
    """Take an arm's steps in four processes, one on each link."""
    way = WAYS[arm.way]
    specification = {
        "config": shape.tree(way, arm.every, arm.asked * shape.step_tokens),
        "ddp": way.ddp,
        "steps": arm.steps,
        "total": arm.asked,
        "patience": PATIENCE,
    }
    net.shape(arm.rate)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "specification.json").write_text(json.dumps(specification))
        script, token = str(Path(__file__).with_name("link_worker.py")), new_token()
        outputs = [folder / f"worker-{rank}.txt" for rank in range(WORKERS)]
        results = [folder / f"worker-{rank}.json" for rank in range(WORKERS)]
        with Sampler(net) as sampler:
            workers = [
                net.start(
                    rank,
                    [sys.executable, script, str(folder / "specification.json"), str(results[rank])],
                    {TOKEN: token},
                    outputs[rank],
                )
                for rank in range(WORKERS)
            ]
            _wait(net, workers, outputs, lambda: None)
        found = [json.loads(result.read_text()) for result in results]
    began, concluded = min(one["began"] for one in found), max(one["concluded"] for one in found)
    record = asdict(arm) | {
        "tokens": arm.steps * shape.step_tokens,
        "seconds": concluded - began,
        "parameters": found[0]["parameters"],
        "kernel": {name: mean(one["kernel"][name] for one in found) for name in found[0]["kernel"]},
        "own_sent": mean(one["own"]["sent"] for one in found),
        "exposed": None if way.ddp else mean(one["exchanges"]["exposed"] for one in found),
        "hidden": None if way.ddp else mean(one["exchanges"]["hidden"] for one in found),
        "rounds": None if way.ddp else found[0]["exchanges"]["rounds"],
        "sent_by_role": None if way.ddp else found[0]["exchanges"]["roles"],
        "workers": [{key: value for key, value in one.items() if key != "ended"} for one in found],
    }
    if arm.traced:
        # while steps were taken, without the end, where what is left is exchanged at once
        last = min(one["ended"][-1] for one in found)
        kept = [index for index, at in enumerate(sampler.times) if began <= at <= last]
        record["trace"] = [
            " ".join([f"{sampler.times[index] - began:.4f}", *(str(trace[index]) for trace in sampler.sent)])
            for index in kept
        ]
    return record


def run_command(net: Links, shape: Shape, every: int, steps: int) -> dict[str, Any]:
    """The same with `shoestring train` itself, from its summary. The kernel's count begins with the first line of metrics, after
    the first step and before the first exchange, and ends with the processes."""
    net.shape(None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tree = shape.tree(WAYS["muloco_2bit"], every, steps * shape.step_tokens)
        tree = merge(tree, {"train": {"heldout_tokens": shape.context}})
        (folder / "recipe.toml").write_text(tomli_w.dumps(tree))
        command = [
            sys.executable,
            "-m",
            "shoestring",
            "train",
            str(folder / "recipe.toml"),
            "--out",
            str(folder / "run"),
        ]
        outputs, token = [folder / f"worker-{rank}.txt" for rank in range(WORKERS)], new_token()
        workers = [net.start(rank, command, {TOKEN: token}, outputs[rank]) for rank in range(WORKERS)]
        metrics, before = folder / "run" / "metrics.jsonl", list[int]()

        def look() -> None:
            if not before and metrics.exists() and metrics.stat().st_size:
                before.extend(counters.sent for counters in net.counters())

        _wait(net, workers, outputs, look)
        after = [counters.sent for counters in net.counters()]
        folders = [folder / "run", *(folder / "run" / "workers" / str(rank) for rank in range(1, WORKERS))]
        summaries = [json.loads((each / "summary.json").read_text()) for each in folders]
    if not before:
        raise ShoestringError("shoestring train wrote no metrics")
    return {
        "every": every,
        "steps": summaries[0]["steps"],
        "tokens": summaries[0]["tokens_of_all"],
        "kernel_sent": mean(after) - mean(before),
        "own_sent": mean(summary["exchanges"]["sent"] for summary in summaries),
        "rounds": summaries[0]["exchanges"]["rounds"],
        "environment": {key: os.environ[key] for key in ("OMP_NUM_THREADS",) if key in os.environ},
    }
