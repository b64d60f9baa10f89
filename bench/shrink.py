"""Models pruned and healed to shares of their time a token, beside random scores, fewer layers, and the same shape from scratch.

For each model and share: `shoestring shrink --to SHARExms/token` by several methods within a budget of seconds; the same model with
layers left out until a token takes as long; and a model of the shape that the first method ended with, trained from scratch on the
same text for the same seconds. Told are held-out losses before, after pruning and after healing, the time a token that was asked
for and that came, and what healing was predicted to come to beside what it came to. `--cache` also tells what a token of a
teacher's words takes on disk, and in seconds online, at the first asking and at the second.

A model is the name of one of reference_models.py, or a place as `shoestring evaluate` takes it. Times are of this machine and mean
nothing while others use it; those that count are taken at the end of a share, of all its models in turns. Every arm is a folder
under --out, and what is there is not made again; --seconds ends it before an arm that would begin later.

    python bench/shrink.py smollm2 10m --budget 5m --cache --out runs/shrink --json shrink.json
    python bench/shrink_figure.py shrink.json --figure healing.svg
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import tomli_w
import torch
from reference_models import NAMES, reference_model

from shoestring import atomic
from shoestring.base import open_model
from shoestring.budget.machine import probe
from shoestring.config import tree
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.objective import At
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.distillation import Distillation
from shoestring.objective.teachers import TEACHER
from shoestring.shrink.healing import healed
from shoestring.shrink.milliseconds import times_of_kept
from shoestring.shrink.target import ratio_in_turns, seconds_per_token
from shoestring.train.run_folder import RunFolder, environment

ROUNDS = 25
METHODS = ("minitron", "slimgpt", "random_pruning")
TINY = "--model.layers=3 --model.width=256 --model.heads=4 --model.hidden=512 --data.vocabulary=1024"
QUICK = (
    "--train.batch=4 --train.heldout_tokens=256 --train.sample_tokens=0 --execution.compile=none --execution.precision=float32 "
    "--execution.attention=flash --execution.loss=plain --model.context=32"
)
"""Of the model that `--smallest` makes, and of all its runs. Its target is of parameters: its times are noise."""


def shoestring(*words: object) -> dict[str, Any]:
    """What a command prints with --json. Raises: SystemExit with what it said, where it failed."""
    command = [sys.executable, "-m", "shoestring", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout) if "--json" in words else {}
    return found


def shrunk(
    place: str, method: str, target: float, budget: str, more: Sequence[str], out: Path, *, to: str
) -> dict[str, Any]:
    """One way to prune. target: the time a token, in seconds. to: the same, as the command takes it."""
    words = ["--method", method, "--to", to, "--budget", budget, *more]
    found = shoestring("shrink", place, *words, "--out", out, "--json")
    stages = found["stages"]
    got = stages["healed"]["seconds"]
    return {
        "arm": method,
        "parameters": stages["healed"]["parameters"],
        "losses": {name: stage["heldout_loss"] for name, stage in stages.items()},
        "asked_seconds": target,
        "got_seconds": got,
        "seconds": found["spent"]["seconds"],
        "from_scratch_predicted": found["from_scratch"],
    }


def scratch(like: Path, budget: str, more: Sequence[str], out: Path, *, target: float) -> dict[str, Any]:
    """A model of the same shape, trained on the same text for as long."""
    opened = open_model(str(like), torch.float32)
    assert isinstance(opened.model, Transformer)
    config: ModelConfig = opened.model.config
    data = opened.about.values["data"]
    shape = {key: value for key, value in tree(config).items() if key not in ("base", "digest", "context")}
    recipe = {"model": shape, "data": {"corpus": data["corpus"], "tokenizer": data["tokenizer"]}}
    path = Path(f"{out}.toml")
    atomic.write_text(path, tomli_w.dumps(recipe))
    shoestring("train", path, "--budget", budget, *more, "--out", out)
    return _trained(out, "from scratch", target)


def _trained(out: Path, arm: str, target: float) -> dict[str, Any]:
    summary = json.loads((out / "summary.json").read_text())
    model = open_model(str(out), torch.float32).model
    assert isinstance(model, Transformer)
    return {
        "arm": arm,
        "parameters": sum(p.numel() for p in model.parameters()),
        "losses": {"healed": summary["heldout_loss"]},
        "asked_seconds": target,
        "got_seconds": seconds_per_token(model),
        "seconds": summary["seconds"],
    }


def kept(out: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found of an arm before, or is now. An arm that was stopped is made anew: its budget is of seconds."""
    record = Path(f"{out}.json")  # a share has a point in it
    if not record.exists():
        shutil.rmtree(out, ignore_errors=True)
        atomic.write_text(record, json.dumps(make()))
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def _whole(place: str) -> dict[str, Any]:
    """Seconds of a token of a model that is not changed."""
    model = open_model(place, torch.float32).model
    assert isinstance(model, Transformer), f"{place} has no axes that could be cut"
    return {"seconds": seconds_per_token(model)}


def curve(folder: Path, points: int = 60) -> list[tuple[float, float]]:
    """(share of the healing that is done, mean training loss) of a run, at most so many points."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["progress"], line["loss"]) for line in lines if line["kind"] == "train"]
    first = losses[0][0] if losses else 0.0
    size = -(-len(losses) // points)
    parts = [losses[start : start + size] for start in range(0, len(losses), size)] if losses else []
    return [
        ((fmean(at for at, _ in part) - first) / max(1 - first, 1e-9), fmean(loss for _, loss in part))
        for part in parts
    ]


def healing(folder: Path) -> dict[str, Any]:
    """What the end of a healing run was predicted to be, and came to."""
    found = healed(RunFolder.open(folder).read_metrics())
    return {"predicted": found.expected and found.expected._asdict(), "seen": found.seen, "came_to": found.came_to}


def timed_together(place: str, share: float, arms: Sequence[dict[str, Any]], rounds: int) -> None:
    """Add to each arm its time a token as a share of the whole model's: the median over rounds in which all take turns, in one
    process that did nothing else. Both are of the same round, as a machine that is shared changes from one to the next."""
    whole, *each = times_of_kept([place, *(arm["folder"] for arm in arms)], plain=True, rounds=rounds)
    for arm, times in zip(arms, each, strict=True):
        shares = sorted(mine / theirs for mine, theirs in zip(times, whole, strict=True))
        arm["share"], arm["shares"] = ratio_in_turns(times, whole), [shares[0], shares[-1]]
        arm["within_10_percent"] = abs(arm["share"] / share - 1) <= 0.1
        spread, took = f"{shares[0]:.3f} to {shares[-1]:.3f}", 1e3 * median(whole)
        print(
            f"{place} {arm['arm']:16} {arm['share']:.3f} ({spread}) of {took:.2f} ms a token, {share:g} asked",
            flush=True,
        )


def cache_cost(place: str, rows: int, length: int, top: int) -> dict[str, Any]:
    """What a teacher's words take: bytes on disk, and seconds online, asked for the first time and found again."""
    teacher = open_model(place, torch.float32).model
    assert isinstance(teacher, Transformer)
    teacher.requires_grad_(False)
    torch.manual_seed(0)
    ids = torch.randint(teacher.about.vocabulary, (rows, length))
    of, took = Batch(Inputs(ids), ids.roll(-1, 1)), dict[str, float]()
    student = open_model(place, torch.float32).model
    with tempfile.TemporaryDirectory() as folder:
        losses, on_disk = dict[str, float](), 0
        for name, cache in (("online", ""), ("first", folder), ("again", folder)):
            one = Distillation(plain, cache=cache, top=top)
            one.learn_from(teacher)
            assert one._asked is not None
            began = time.perf_counter()
            one._asked.ask(of)
            took[name] = (time.perf_counter() - began) / ids.numel()
            found = one(student, of, At())
            losses[name] = float(found.mean.detach())
            if name == "again":
                assert found.spent[TEACHER].flops == 0
        on_disk = sum(path.stat().st_size for path in Path(folder).glob("*.rows"))
    each = on_disk / ids.numel()
    return {"top": top, "bytes_a_token": each, "seconds_a_token": took, "student_loss": losses}


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", default=["smollm2"], help="models (default: smollm2)")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.75, 0.5], help="of the time a token")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--budget", default="20m", help="of each arm, as the command takes it")
    parser.add_argument("--more", default="", help="more words for every run, as one string")
    parser.add_argument("--cache", action="store_true", help="also measure what a teacher's words take")
    parser.add_argument("--top", type=int, default=64, help="tokens of a place that the cache keeps")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/shrink"), help="a folder for each arm (default runs/shrink)"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no arm begins; default none")
    parser.add_argument("--smallest", action="store_true", help="a tiny model made here: does the bench run?")
    parser.add_argument("--json", type=Path, help="write what was found here")
    options = parser.parse_args(words)
    more, results = options.more.split(), list[dict[str, Any]]()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch_folder:
        folder = Path(scratch_folder) if options.smallest else options.out
        folder.mkdir(parents=True, exist_ok=True)
        places, shares, methods, budget = options.places, options.shares, options.methods, options.budget
        if options.smallest:
            more = QUICK.split()
            shoestring("train", "--budget=4ktok", *TINY.split(), *more, "--out", folder / "whole")
            places, shares, methods, budget = [str(folder / "whole")], [0.9], ["random_pruning"], "1ktok"
        for name in places:
            place = str(reference_model(name)) if name in NAMES else name
            stem = Path(name).name
            whole = kept(folder / f"{stem}-whole", partial(_whole, place))["seconds"]
            for share in shares:
                target, arms, at = share * whole, list[dict[str, Any]](), folder / f"{stem}-{share:g}"
                to = "0.9x" if options.smallest else f"{share:g}xms/token"
                first = Path(f"{at}-{methods[0]}")
                ways: dict[str, Callable[..., dict[str, Any]]] = {
                    method: partial(shrunk, place, method, target, budget, more, to=to) for method in methods
                }
                ways["depth"] = partial(shrunk, place, "drop_layers", target, budget, more, to=to)
                ways["scratch"] = partial(scratch, first, budget, more, target=target)
                for way, make in ways.items():
                    out = Path(f"{at}-{way}")
                    if time.monotonic() - began > options.seconds:
                        print(f"{name} {share:g} {way}: not begun within {options.seconds:g} s", flush=True)
                        continue
                    arm = kept(out, partial(make, out=out))
                    arms.append(arm)
                    losses = ", ".join(f"{n} {v:.4f}" for n, v in arm["losses"].items() if v is not None)
                    asked, got = 1e3 * arm["asked_seconds"], 1e3 * arm["got_seconds"]
                    print(f"{name} {share:g} {arm['arm']:16} {losses}; {got:.2f} ms of {asked:.2f} asked", flush=True)
                    arm["folder"], arm["curve"] = str(out), curve(out)
                    if way != "scratch":
                        arm["healing"] = healing(out)
                results.append({"place": name, "share": share, "whole_seconds": whole, "arms": arms})
                timed_together(place, share, arms, 1 if options.smallest else ROUNDS)
            if options.cache or options.smallest:
                size = (2, 16) if options.smallest else (8, 256)
                cost = kept(folder / f"{stem}-cache", partial(cache_cost, place, *size, options.top))
                results.append({"place": name, "cache": cost})
                print(
                    f"{name} {cost['bytes_a_token']:.0f} bytes a token of the teacher's, {cost['student_loss']}",
                    flush=True,
                )
    if options.json:
        content = {"environment": environment(probe()), "results": results}
        atomic.write_text(options.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
