"""DiLoCo: Shoestring's beside torchft's and exogym's, workers as processes over gloo on the loopback interface.

Every worker process holds one model for each side, all from the same first weights, and trains them in turn, step by step,
in an order that turns too: same batches, schedule, clipping and inner AdamW, outer Nesterov SGD every H steps with the same
learning rate and momentum, whole model at once, float32 on the wire. So the sides share whatever else the machine is doing.
Then ours with 2-bit codes and error feedback, and with Muon inside (which has an outer momentum of its own), as further
rows. sync_sides.py has the sides; what cannot be made equal is printed under the table.

* held-out: loss in the weights after the last exchange, and how far above ours of the same seed. apart: the distance from
  our final weights, as a share of how far ours moved; 0 is the same bits. Workers that end with different weights are told.
* ms a step: median of the steps without an exchange, passes and inner step. ms a sync: median, from the end of the inner step
  to the end of the exchange and the outer step, of the worker that took longer; both enter together, after a barrier.
* MB: sent by a worker in the whole run, as the kernel counts what the process has given to its TCP connections (mean of the
  workers, and the most), without TCP/IP headers, heartbeats between exchanges and anything before the first step; for ours
  also what Shoestring says it sent. bytes a weight: the median exchange over the number of weights; float32 is 4.
* x: their figure over ours ('shoestring') of the same seed: the mean of the seeds, and the least and the most.

A file a seed in --out; those that are there are not made again.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, median
from typing import Any

from sync_sides import SIDES

from shoestring import atomic
from shoestring.budget.machine import cache_folder, probe
from shoestring.data.config import DataConfig
from shoestring.data.prepare import prepare
from shoestring.errors import ShoestringError
from shoestring.launch.processes import launch
from shoestring.sync.elastic.lighthouse import Lighthouse
from shoestring.train.run_folder import environment

REMARKS = {
    "shoestring": "one message an exchange, checksummed; a vote; averaged in the order of ranks",
    "torchft": "a quorum at the lighthouse for every exchange, then an all-reduce for each tensor; no checksum",
    "torchft_bucketed": "as torchft, one all-reduce of a flat copy in one bucket (of several, some tensors are lost)",
    "torchft_quantised": "as torchft with should_quantize=True, which without Triton sends full precision and says nothing",
    "exogym": "every tensor is reduced, then sent by worker 0, which alone steps the outer optimiser; it would exchange one "
    "step late, and is made to count from 1; on a CPU the model of worker 0 shares its memory with the outer "
    "weights after the first exchange, so that later pseudo-gradients are zero",
    "exogym_unshared": "as exogym, that sharing undone after every step",
    "shoestring_2bit": "matrices in 2 bits with error feedback",
    "shoestring_muon": "Muon inside, float32 exchange",
    "shoestring_muon_2bit": "Muon inside, matrices in 2 bits with error feedback",
}


def missing(side: str) -> str:
    """Why a side cannot run here; '' where it can."""
    if side.startswith("torchft"):
        if importlib.util.find_spec("torchft") is None:
            return "torchft is not installed: pip install torchft"
        if side == "torchft_quantised" and importlib.util.find_spec("triton") is not None:
            return "with Triton there, its quantised all-reduce needs a GPU"
    if side.startswith("exogym"):
        try:
            importlib.import_module("exogym.strategy")
        except ImportError as error:
            return (
                f"no usable exogym ({error}); it cannot be installed from PyPI, whose exogym 0.0.0a0 holds no code: "
                "pip install git+https://github.com/exo-explore/gym"
            )
    return ""


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not an installed package"


def run(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What each worker found."""
    with contextlib.ExitStack() as stack:
        lighthouses = {
            name: stack.enter_context(Lighthouse(min_replicas=settings["workers"]))
            for name in settings["sides"]
            if name.startswith("torchft")
        }
        addresses = {name: "{}:{}".format(*each.address) for name, each in lighthouses.items()}
        atomic.write_text(folder / "settings.json", json.dumps({**settings, "lighthouses": addresses}))
        command = [sys.executable, str(Path(__file__).with_name("sync_sides.py")), str(folder)]
        quiet = {"RUST_LOG": "warn"}  # of torchft
        team = stack.enter_context(launch(command, settings["workers"], outputs=folder, environment=quiet))
        if team.wait():
            sys.exit("stopped")
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(settings["workers"])]


def figures(workers: Sequence[dict[str, Any]], side: str) -> dict[str, float]:
    """One side's figures of one seed. workers: what each worker found, by side."""
    own = [worker[side] for worker in workers]
    sent = [sum(each["sent"]) for each in own]
    return {
        "heldout_loss": own[0]["heldout_loss"],
        "apart": own[0]["apart"],
        "agree": len({each["weights"] for each in own}) == 1,
        "step_ms": 1e3 * median(second for each in own for second in each["step_seconds"]),
        "sync_ms": 1e3 * median(map(max, zip(*(each["sync_seconds"] for each in own), strict=True))),
        "sent": mean(sent),
        "most": max(sent),
        "counted": mean(sum(each["counted"]) for each in own),
        "a_weight": median(count / each["parameters"] for each in own for count in each["sent"]),
    }


def table(seeds: Sequence[Sequence[dict[str, Any]]]) -> str:
    """seeds: of each, what its workers found."""
    sides = list(seeds[0][0])
    found = {side: [figures(workers, side) for workers in seeds] for side in sides}
    heads = "".join(f"{h:>{w}}" for h, w in (("held-out", 10), ("above ours", 12), ("apart", 10)))
    heads += "".join(f"{h:>{w}}" for h, w in (("ms a step", 11), ("x", 20), ("ms a sync", 11), ("x", 20)))
    heads += "".join(f"{h:>{w}}" for h, w in (("MB (most)", 18), ("x", 8), ("own count", 11), ("bytes a weight", 16)))
    lines = [f"{'':21}{heads}"]
    for side, own in found.items():
        pairs = list(zip(own, found[sides[0]], strict=True))

        def average(key: str, own: list[dict[str, float]] = own) -> float:
            return mean(one[key] for one in own)

        def ratio(key: str, pairs: list[Any] = pairs) -> str:
            each = [one[key] / ours[key] for one, ours in pairs]
            return f"{mean(each):.2f} ({min(each):.2f}-{max(each):.2f})"

        above = mean(100 * (one["heldout_loss"] / ours["heldout_loss"] - 1) for one, ours in pairs)
        counted = f"{average('counted') / average('sent'):.2%}" if average("counted") else ""
        size = f"{average('sent') / 1e6:.2f} ({average('most') / 1e6:.2f})"
        share = average("sent") / mean(ours["sent"] for _, ours in pairs)
        lines.append(
            f"{side:21}{average('heldout_loss'):10.4f}{above:+10.2f} %{average('apart'):10.1e}"
            f"{average('step_ms'):11.2f}{ratio('step_ms'):>20}{average('sync_ms'):11.2f}{ratio('sync_ms'):>20}"
            f"{size:>18}{share:8.3f}{counted:>11}{average('a_weight'):16.3f}"
        )
        if not all(one["agree"] for one in own):
            lines.append(f"{'':21}its workers do not end with the same weights")
    return "\n".join([*lines, "", *(f"{side}: {REMARKS[side]}" for side in sides)])


def read(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole: list[tuple[str, int]] = [("layers", 3), ("width", 128), ("heads", 4), ("context", 128), ("vocabulary", 2048)]
    whole += [("batch", 32), ("steps", 300), ("every", 30), ("heldout-tokens", 65536), ("workers", 2)]
    for name, default in whole:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    rates: list[tuple[str, float, str]] = [("lr", 4e-3, "of the inner AdamW"), ("muon-lr", 0.02, "of the inner Muon")]
    rates += [("muon-fallback-lr", 1e-2, "of AdamW beside Muon"), ("outer-lr", 0.7, "of every outer SGD")]
    rates += [("outer-momentum", 0.9, "around AdamW"), ("muon-momentum", 0.6, "around Muon")]
    for name, rate, what in [*rates, ("feedback", 0.9, "the decay of error feedback")]:
        parser.add_argument(f"--{name}", type=float, default=rate, help=f"{what}, default {rate:g}")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"), help="of the passes")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=list(SIDES), help="with ours, in any case")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed of a tiny run, to see that everything works")
    parser.add_argument("--out", type=Path, default=Path("runs/sync_peers"), help="a file for each seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(words)
    if options.quick:
        options.layers, options.width, options.context, options.vocabulary = 2, 64, 64, 512
        options.steps, options.every, options.batch = 40, 10, 8
        options.heldout_tokens, options.seeds = 4096, options.seeds[:1]
    if options.workers < 2 or options.every < 2 or options.steps < options.every or options.steps % options.every:
        parser.error(
            "it takes two workers, --every of 2 and --steps a multiple of it, so that all end with an exchange"
        )
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What decides a seed's figures."""
    reasons = {side: missing(side) for side in SIDES if side in {"shoestring", *options.sides}}
    for reason in {reason: None for reason in reasons.values() if reason}:
        print(f"left out: {', '.join(side for side in reasons if reasons[side] == reason)}: {reason}")
    shape = ("layers", "width", "heads", "context", "vocabulary")
    others = {*shape, "sides", "seeds", "quick", "out", "json"}
    kept = {key: value for key, value in vars(options).items() if key not in others}
    model = {key: getattr(options, key) for key in shape}
    return {**kept, "model": model, "sides": [side for side in reasons if not reasons[side]]}


def main(words: Sequence[str]) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    options = read(words)
    settings = settings_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(DataConfig(vocabulary=options.vocabulary), cache_folder())
    found = []
    for seed in options.seeds:
        path = options.out / f"{'quick-' if options.quick else ''}seed-{seed}.json"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=options.out) as scratch:
                workers = run({**settings, "seed": seed}, Path(scratch))
            atomic.write_text(path, json.dumps({"settings": settings, "workers": workers}))
        kept = json.loads(path.read_text())
        if kept["settings"] != settings:
            sys.exit(f"{path} is of other settings: give another --out, or remove it")
        found.append(kept["workers"])
        losses = (f"{side} {one['heldout_loss']:.4f}" for side, one in found[-1][0].items())
        print(f"seed {seed}: {', '.join(losses)}", flush=True)
    print("\n" + table(found))
    if options.json:
        sides = {side: [figures(workers, side) for workers in found] for side in settings["sides"]}
        versions = {name: version_of(name) for name in ("torchft", "exogym")}
        content = {"settings": settings, "seeds": options.seeds, "versions": versions, "sides": sides}
        atomic.write_text(options.json, json.dumps({**content, "environment": environment(probe()), "runs": found}))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ShoestringError as error:
        sys.exit(str(error))
