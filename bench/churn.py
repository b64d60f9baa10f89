"""Training through faults: a seeded trace of kills, freezes, late joins and cut links, against the same run left in peace.

Both runs have the same recipe and the same budget in seconds (--minutes); the faults come at the trace's seconds, counted from
the first committed round. A fault is one of

* kill: kill -9, and the same command again after some seconds;
* freeze: SIGSTOP, and SIGCONT after some seconds;
* late: a worker more than there were comes, and leaves by SIGTERM after a while;
* cut: a worker's connection to the run's lighthouse and store is cut (each worker reaches them through a proxy of its own) and
  comes back after some seconds. Connections among workers are not cut: on one machine that takes rights over its network.

A worker has one fault at a time, and at most half of them are away at once. What is reported:

* loss: held-out, of the final weights, of both runs;
* tokens: trained (each worker's ledger), seen (in the final weights, as the run itself counts), discarded (the rest);
  goodput = seen / trained. That the accounts close is checked three ways: the tokens of all committed rounds, the tokens
  credited to each worker and the tokens of the model are one number; no worker is credited more than its ledger has; and what
  a worker that lived to the end has not discarded by its ledger is what it is credited with;
* useful: compute seconds of tokens that are in the model, over workers times wall-clock; and against the run in peace;
* workers that ended by themselves, rounds abandoned, and by kind of fault the seconds from a worker's return to its first
  committed round.

Parts that are there (calm.json, faults.json) are not made again; --trace replays another run's trace.json.
"""

import argparse
import heapq
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from faults import Fault, Proxy, draw

from shoestring import atomic
from shoestring.budget.ledger import Ledger, read_ledger
from shoestring.budget.machine import cache_folder, probe
from shoestring.config import build, overrides
from shoestring.data.prepare import prepare
from shoestring.launch.elastic import accounts
from shoestring.launch.fleet import Fleet
from shoestring.launch.host import Host
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import RunFolder
from shoestring.train.starting import resolve

SHAPE = {"layers": 2, "width": 64, "heads": 2, "context": 128}
"""Of the model: small enough to see most of what it can learn in the time, as else the loss would say above all how many
fewer tokens there were."""


class Run:
    """One run: its host, its workers, and the faults done to them."""

    def __init__(self, options: argparse.Namespace, folder: RunFolder, config: RunConfig, dataset: Any) -> None:
        self.options, self.folder = options, folder
        self.names = [str(rank) for rank in range(options.workers)]
        self.stack = ExitStack()
        self.host = self.stack.enter_context(Host(config, dataset, folder, ("127.0.0.1", 0)))
        self.proxies: dict[str, Proxy] = {}
        self.fleet = Fleet(self.host, self.names, restart=False, since=time.monotonic())
        self.returned: list[dict[str, Any]] = []
        self.done: list[dict[str, Any]] = []

    def start(self, name: str, again: bool = False) -> None:
        if name not in self.proxies:
            self.proxies[name] = Proxy(self.host.listener.address)
        self.fleet.start(name, again=again, through=self.proxies[name].address)

    def alive(self, name: str) -> bool:
        process = self.fleet.running.get(name)
        return process is not None and process.poll() is None

    def send(self, name: str, number: int) -> None:
        if self.alive(name):
            self.fleet.running[name].send_signal(number)

    def begin(self, fault: Fault) -> None:
        if fault.kind == "late":
            self.start(fault.worker, again=True)
        elif fault.kind == "cut":
            self.proxies[fault.worker].cut()
        else:
            self.send(fault.worker, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
        if fault.kind == "kill":
            self.fleet.running[fault.worker].wait()
        self._note(fault, "came" if fault.kind == "late" else "struck")

    def finish(self, fault: Fault) -> None:
        if fault.kind == "late":
            self.send(fault.worker, signal.SIGTERM)
        elif fault.kind == "cut":
            self.proxies[fault.worker].mend()
        elif fault.kind == "freeze":
            self.send(fault.worker, signal.SIGCONT)
        else:
            self.start(fault.worker, again=True)
        self._note(fault, "left" if fault.kind == "late" else "returned")

    def _note(self, fault: Fault, what: str) -> None:
        self.done.append({"what": what, "time": time.time(), **asdict(fault)})
        print(f"{fault.at:7.1f} s  {fault.kind} {fault.worker}: {what}", flush=True)

    def first_round(self) -> None:
        end = time.monotonic() + 180
        while not any(line["committed"] for line in lines(self.fleet.folder("0") / "rounds.jsonl")):
            if time.monotonic() > end or not self.alive("0"):
                sys.exit(f"the run did not begin: {self.fleet.last_words('0')}")
            time.sleep(0.05)

    def through(self, trace: Sequence[Fault]) -> float:
        """Run to the end, with these faults. Returns the wall-clock seconds from the first round to the last."""
        for name in self.names:
            self.start(name)
        self.first_round()
        began = time.monotonic()
        agenda: list[tuple[float, int, Callable[[Fault], None], Fault]] = []
        for number, fault in enumerate(trace):
            heapq.heappush(agenda, (fault.at, 2 * number, self.begin, fault))
            heapq.heappush(agenda, (fault.at + fault.seconds, 2 * number + 1, self.finish, fault))
        while not self.host.run_status.finished_by():
            now = time.monotonic() - began
            if agenda and agenda[0][0] <= now:
                _, _, act, fault = heapq.heappop(agenda)
                act(fault)
                continue
            if not agenda and not any(self.alive(name) for name in self.fleet.running):
                sys.exit("no worker is left: the run did not survive")
            time.sleep(min(0.05, max(agenda[0][0] - now, 0.0)) if agenda else 0.05)
        took = time.monotonic() - began
        end = time.monotonic() + 10
        for name in self.fleet.running:
            self.send(name, signal.SIGCONT)
        while any(self.alive(name) for name in self.fleet.running) and time.monotonic() < end:
            time.sleep(0.1)
        return took

    def close(self) -> None:
        self.fleet.end()
        for proxy in self.proxies.values():
            proxy.close()
        self.stack.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().split("\n")[:-1]] if path.exists() else []


def figures(run: Run, took: float) -> dict[str, Any]:
    """What came of a run."""
    workers = run.folder.path / "workers"
    judge = run.host.run_status.finished_by()
    summary = json.loads((workers / judge / "summary.json").read_text())
    rounds = {path.parent.name: lines(path) for path in sorted(workers.glob("*/rounds.jsonl"))}
    credited, found = summary["credited"], accounts(workers, summary["credited"])
    committed: dict[int, int] = {}
    for own in rounds.values():
        for line in own:
            if line["committed"]:
                committed[line["round"]] = line["added"]
    ledgers = {path.parent.name: read_ledger(path) for path in sorted(workers.glob("*/ledger.jsonl"))}
    compute = {name: sum(line.get("seconds", {}).get("compute", 0.0) for line in own) for name, own in ledgers.items()}
    shares = {
        name: each["seen"] / each["trained"] if each["trained"] else 0.0 for name, each in found["workers"].items()
    }
    if not found["trained"]:
        sys.exit("no worker took a step in that time: this machine is slow or busy, give it more --minutes")
    lived = {name for name, own in rounds.items() if own and own[-1]["round"] >= max(committed)}
    kept = {name: sum(line.get("tokens", 0) for line in ledgers[name]) for name in lived}
    return {
        "heldout_loss": summary["heldout_loss"],
        "steps": summary["steps"],
        "rounds": len(committed),
        "seconds": took,
        "tokens": summary["tokens"],
        "trained": found["trained"],
        "seen": found["seen"],
        "discarded": found["discarded"],
        "goodput": found["seen"] / found["trained"],
        "useful": sum(compute[name] * shares[name] for name in compute) / (run.options.workers * took),
        "accounts": found["workers"],
        "accounts_close": {
            "rounds_are_the_model": sum(committed.values()) == summary["tokens"] == sum(credited.values()),
            "credited_at_most_trained": all(each["discarded"] >= 0 for each in found["workers"].values()),
            "ledgers_agree": all(kept[name] == credited.get(name, 0) for name in lived),
        },
        "abandoned_rounds": len({line["round"] for own in rounds.values() for line in own if not line["committed"]}),
        "abandoned_attempts": sum(not line["committed"] for own in rounds.values() for line in own),
        "healed": sum(line["healed"] and line["committed"] for own in rounds.values() for line in own),
        "rejoin_seconds": _rejoined(run.done, rounds),
        "failed": {
            name: run.fleet.last_words(name)
            for name, process in run.fleet.running.items()
            if (process.returncode or 0) > 0 and process.returncode != 128 + signal.SIGTERM
        },
        "faults": run.done,
    }


def _rejoined(done: Sequence[dict[str, Any]], rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By kind of fault, seconds from a worker's return to its first committed round; None where it came too late."""
    times: dict[str, list[float | None]] = {}
    for event in done:
        if event["what"] in ("returned", "came"):
            later = [r["at"] for r in rounds.get(event["worker"], []) if r["committed"] and r["at"] > event["time"]]
            times.setdefault(event["kind"], []).append(round(later[0] - event["time"], 2) if later else None)
    known = {kind: [each for each in found if each is not None] for kind, found in times.items()}
    return {
        kind: {"each": times[kind], "median": median(found) if found else None, "most": max(found, default=None)}
        for kind, found in known.items()
    }


@contextmanager
def run_in(options: argparse.Namespace, path: Path) -> Iterator[Run]:
    shutil.rmtree(path, ignore_errors=True)
    config = build(RunConfig, overrides(recipe(options)))
    dataset = prepare(config.data, cache_folder())
    config = resolve(config, dataset, probe(), Ledger())
    with RunFolder.create(path) as folder:
        folder.write_config(config, dataset)
        run = Run(options, folder, config, dataset)
        try:
            yield run
        finally:
            run.close()


def recipe(options: argparse.Namespace) -> list[str]:
    """The flags of both runs."""
    return [
        f"--budget={60 * options.minutes:g}s",
        f"--seed={options.seed}",
        f"--workers={options.workers}",
        "--transport=torchft",
        "--sync=muloco",
        f"--sync.every={options.every}",
        "--sync.codec=2bit",
        f"--train.batch={options.sequences * options.workers}",
        "--train.evaluate_every=0.5",
        "--train.heldout_tokens=32768",
        "--train.checkpoint_every=20",
        "--train.sample_tokens=0",
        "--execution.threads=1",
        "--execution.compile=none",
        "--execution.precision=float32",
        "--optim=muon",
        "--optim.lr=0.02",
        "--fallback.lr=0.01",
        "--elastic.silence=2",
        "--elastic.exchange=5",
        "--data.vocabulary=1024",
        *(f"--model.{key}={value}" for key, value in SHAPE.items()),
        *options.flags,
    ]


def part(options: argparse.Namespace, name: str, trace: Sequence[Fault]) -> dict[str, Any]:
    kept, asked = options.out / f"{name}.json", [recipe(options), [asdict(fault) for fault in trace]]
    if kept.exists():
        found = json.loads(kept.read_text())
        if found["asked"] != asked:
            sys.exit(f"{kept} is of another recipe or trace: name another folder with --out")
        return found
    with run_in(options, options.out / name) as run:
        found = {"asked": asked, **figures(run, run.through(trace))}
    atomic.write_text(kept, json.dumps(found, indent=1) + "\n")
    return found


def main() -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/churn"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--every", type=int, default=30, help="inner steps between two exchanges")
    parser.add_argument("--sequences", type=int, default=8, help="of a worker's inner step")
    parser.add_argument("--trace", type=Path, help="replay this trace instead of drawing one")
    parser.add_argument("--quick", action="store_true", help="8 faults in 2 minutes over 3 workers: a smoke run")
    parser.add_argument("flags", nargs="*", help="further keys of the recipe, after --")
    options = parser.parse_args()
    if options.quick:
        options.faults, options.minutes, options.workers = 8, 2.0, 3
    os.environ["OMP_NUM_THREADS"] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    given = options.trace or options.out / "trace.json"
    if given.exists():
        trace = [Fault(**each) for each in json.loads(given.read_text())]
    else:
        trace = draw(options.seed, options.faults, 60 * options.minutes, options.workers, 0.5 if options.quick else 1.0)
    atomic.write_text(options.out / "trace.json", json.dumps([asdict(fault) for fault in trace], indent=1) + "\n")
    calm, faults = part(options, "calm", []), part(options, "faults", trace)
    result = {
        "recipe": recipe(options),
        "trace": "trace.json",
        "loss": {"calm": calm["heldout_loss"], "faults": faults["heldout_loss"]},
        "loss_difference": faults["heldout_loss"] / calm["heldout_loss"] - 1,
        "goodput": faults["goodput"],
        "useful": {"calm": calm["useful"], "faults": faults["useful"], "ratio": faults["useful"] / calm["useful"]},
        "accounts_close": {"calm": calm["accounts_close"], "faults": faults["accounts_close"]},
        "failed": faults["failed"],
        "abandoned_rounds": faults["abandoned_rounds"],
        "rejoin_seconds": faults["rejoin_seconds"],
        "calm": calm,
        "faults": faults,
    }
    atomic.write_text(options.out / "churn.json", json.dumps(result, indent=1) + "\n")
    told = {key: value for key, value in result.items() if key not in ("calm", "faults", "recipe")}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
