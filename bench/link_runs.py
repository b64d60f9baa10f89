"""The runs of slow_link.py: four processes, each on its link, and what was seen of them."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import tomli_w
from link_arms import WAYS, WORKERS, Arm, Shape
from link_counters import Counters, Sampler
from links import Links

from shoestring.config import merge
from shoestring.errors import ShoestringError
from shoestring.sync.transport.frame import TOKEN, new_token

PATIENCE = 300.0
"""Seconds that workers wait for each other."""


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
        "processor": sum(one["processor"] for one in found),
        "parameters": found[0]["parameters"],
        "kernel": {name: mean(one["kernel"][name] for one in found) for name in found[0]["kernel"]},
        "own_sent": mean(one["own"]["sent"] for one in found),
        "exposed": None if way.ddp else mean(one["exchanges"]["exposed"] for one in found),
        "hidden": None if way.ddp else mean(one["exchanges"]["hidden"] for one in found),
        "rounds": None if way.ddp else found[0]["exchanges"]["rounds"],
        "sent_by_role": None if way.ddp else found[0]["exchanges"]["sent_by_role"],
        "workers": [{key: value for key, value in one.items() if key != "ended"} for one in found],
    }
    if arm.rate is None and not way.ddp:
        # how bytes left while steps were taken, without the end, where what is left is exchanged at once
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
        metrics, before = folder / "run" / "metrics.jsonl", list[Counters]()

        def look() -> None:
            if not before and metrics.exists() and metrics.stat().st_size:
                before.extend(net.counters())

        _wait(net, workers, outputs, look)
        if not before:
            raise ShoestringError("shoestring train ended before it wrote metrics")
        passed = [after.since(first) for after, first in zip(net.counters(), before, strict=True)]
        folders = [folder / "run", *(folder / "run" / "workers" / str(rank) for rank in range(1, WORKERS))]
        summaries = [json.loads((each / "summary.json").read_text()) for each in folders]
    steps = summaries[0]["steps"]
    return {
        "way": "muloco_2bit",
        "every": every,
        "steps": steps,
        "tokens": steps * shape.step_tokens,
        "kernel": {name: mean(getattr(one, name) for one in passed) for name in ("sent", "packets_sent")},
        "own_sent": mean(summary["exchanges"]["sent"] for summary in summaries),
        "rounds": summaries[0]["exchanges"]["rounds"],
    }
