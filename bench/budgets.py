"""What a budget in seconds comes to: asked and spent, tokens expected and trained.

Each budget of --seconds is a `shoestring train` as a user runs it, in a process of its own, on the embedded corpus, --repeats
times. The first run of a shape measures ways to compute and the later ones know them: --fresh gives every run a cache without
them. With --busy, an endless loop runs beside each, from before it starts until it has ended.

Spent is what the run's ledger says: reading the data, planning, measuring, steps, evaluations, checkpoints and the sample.
'process' is from the start of the process to its end, with Python's and torch's own loading and the report, which are on
nobody's budget. Expected tokens are those that the plan printed; a ratio is trained / expected.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from budgeted import own_caches
from busy import loops, others_now

from shoestring import atomic
from shoestring.budget.machine import cache_folder, probe
from shoestring.budget.units import parse_amount
from shoestring.data.config import DataConfig
from shoestring.data.prepare import prepare
from shoestring.train.run_folder import environment

EXPECTED = re.compile(r"expected: .*?, ([0-9.e+]+ [kMGT]?tok) in")


def run(seconds: float, folder: Path, busy: int, fresh: bool, more: Sequence[str]) -> dict[str, Any]:
    """One run. Raises: SystemExit, with what it printed, where it fails."""
    command = [sys.executable, "-m", "shoestring", "train", "--budget", f"{seconds:g}s", "--out", str(folder), *more]
    with tempfile.TemporaryDirectory() as caches, loops(busy) if busy else nullcontext():
        surroundings = {**os.environ, "COLUMNS": "200", **(own_caches(Path(caches)) if fresh else {})}
        began = time.monotonic()
        ended = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
        process = time.monotonic() - began
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    summary = json.loads((folder / "summary.json").read_text())
    expected = EXPECTED.search(ended.stdout)
    assert expected, ended.stdout
    tokens = parse_amount(expected[1].replace(" ", ""))[1]
    return {
        "asked": seconds,
        "spent": summary["seconds"],
        "overshoot": summary["seconds"] / seconds - 1,
        "process": process,
        "steps": summary["steps"],
        "expected": tokens,
        "trained": summary["tokens"],
        "ratio": summary["tokens"] / tokens,
        "heldout_loss": summary["heldout_loss"],
        "cut_short": summary.get("heldout_cut_short", False),
        "seconds_by_cause": summary["seconds_by_cause"],
        "seconds_beside_others": summary["seconds_beside_others"],
        "parameters": summary["parameters"],
        "peak_memory": summary["peak_memory"],
        "memory_expected": memory(ended.stdout),
    }


def memory(printed: str) -> float:
    """Bytes that the plan expected at most."""
    found = re.search(r"([0-9.e+]+ [kMGT]?B) of memory at most", printed)
    assert found, printed
    return parse_amount(found[1].replace(" ", ""))[1]


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0, 40.0, 120.0], help="default 20 40 120")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each budget, default 1")
    parser.add_argument(
        "--busy", type=int, nargs="?", const=1, default=0, help="endless loops beside (1 where no number)"
    )
    parser.add_argument("--fresh", action="store_true", help="every run measures anew how to compute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, environment and every run there")
    options, more = parser.parse_known_args(words)
    prepare(DataConfig(), cache_folder())  # once, before any clock
    machine, runs = probe(), []
    print(
        f"{machine.name}, {machine.threads} threads; others take {others_now():.2f} cores now; busy: {options.busy} loops"
    )
    print(
        f"{'asked':>7}{'spent':>9}{'over':>8}{'process':>10}{'steps':>7}{'expected':>10}{'trained':>10}{'ratio':>7}"
        f"{'memory expected, peak':>24}"
    )
    for number in range(options.repeats):
        for seconds in options.seconds:
            with tempfile.TemporaryDirectory() as scratch:
                found = run(seconds, Path(scratch) / f"run-{number}", options.busy, options.fresh, more)
            runs.append(found)
            print(
                f"{found['asked']:6.0f}s{found['spent']:8.2f}s{found['overshoot']:8.1%}{found['process']:9.1f}s"
                f"{found['steps']:7}{found['expected'] / 1e6:9.3f}M{found['trained'] / 1e6:9.3f}M{found['ratio']:7.2f}"
                f"{found['memory_expected'] / 1e6:15.0f} MB{found['peak_memory'] / 1e6:6.0f} MB"
                f"{'  last evaluation cut short' * found['cut_short']}",
                flush=True,
            )
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"} | {"more": more}
        content = {"settings": settings, "environment": environment(machine), "runs": runs}
        atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
