"""Experts of clusters against each other and against one dense model, at equal total FLOPs.

Four domains are found in the corpus by content. For each seed `shoestring experts` trains, on the same clusters and the same
FLOPs in all (seed models included): experts of one size for as many tokens each (M_Ho-I_Ho of HDEE), experts of one size
for 0.75 to 1.25 times the mean number of tokens, the harder cluster the more (M_Ho-I_He), experts of three sizes, the harder
cluster the larger (M_He-I_Ho), experts on random splits of the documents (the control), and one dense model of the common
size. Printed: the held-out loss in all and by domain of each ensemble, in the way of choosing experts that --use names and
in the others, with the FLOPs that a token of held-out text takes. Domains of the random splits are others, and not shown.

Folders that are there are gone on with; what is finished is not made again. --smoke is a run of seconds that shows
nothing but that everything works.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from shoestring import atomic

SMOKE = {"flops": 2e10, "size": "1x32", "sizes": "1x16,1x32,1x32,1x48", "context": 32, "batch": 4, "seeds": [0]}


def arms(options: argparse.Namespace) -> dict[str, list[str]]:
    """The words that set each arm apart."""
    one = ["--sizes", options.size]
    return {
        "M_Ho-I_Ho": [*one, "--dense"],
        "M_Ho-I_He": [*one, "--experts.allocate", "difficulty"],
        "M_He-I_Ho": ["--sizes", options.sizes],
        "random splits": [*one, "--experts.clusters", "random"],
    }


def made(folder: Path, options: argparse.Namespace, seed: int, own: Sequence[str]) -> dict[str, Any]:
    """The summary of a set of experts, made or finished unless it is there."""
    summary = folder / "summary.json"
    if not summary.is_file():
        command = [sys.executable, "-m", "shoestring", "experts"]
        if (folder / "experts.toml").is_file():
            command += ["--resume", str(folder)]
        else:
            layers, width = options.size.split("x")[:2]
            heads = max(1, int(width) // options.head_width)
            command += [
                "--out",
                str(folder),
                "--experts",
                "4",
                "--budget",
                f"{options.flops:.0f}flops",
                "--seed",
                str(seed),
            ]
            command += ["--model.layers", layers, "--model.width", width, "--model.heads", str(heads)]
            command += ["--model.context", str(options.context), "--train.batch", str(options.batch)]
            command += ["--train.sample_tokens", "0", "--experts.seed_share", str(options.seed_share)]
            command += ["--data.corpus", options.corpus, *options.more.split(), *own]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)}\n{ended.stdout}{ended.stderr}")
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


def compared(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The summaries of all arms for one seed."""
    found = {}
    for name, own in arms(options).items():
        folder = options.out / f"{name.lower().replace(' ', '-')}-seed-{seed}"
        print(f"seed {seed}: {name} ({folder})", flush=True)
        found[name] = made(folder, options, seed, own)
    return {"seed": seed, "arms": found}


def rows(found: Sequence[dict[str, Any]], use: str) -> list[dict[str, Any]]:
    """A line for each arm and way to use it, the dense model first: means over the seeds."""
    lines = []
    for name, first in found[0]["arms"].items():
        runs = [one["arms"][name] for one in found]
        ways = [way for way in first["arms"] if not way.startswith(("expert-", "seed "))]
        for way in sorted(ways, key=lambda way: way != use):
            each, dense = [run["arms"][way] for run in runs], way == "dense"
            domains = {}
            for domain in [] if name == "random splits" else each[0]["domains"]:
                losses = [arm["domains"][domain]["loss"] for arm in each]
                domains[domain] = None if None in losses else mean(losses)
            lines.append(
                {
                    "arm": "dense" if dense else name,
                    "use": "" if dense else way,
                    "loss": mean(arm["heldout_loss"] for arm in each),
                    "losses": [arm["heldout_loss"] for arm in each],
                    "domains": domains,
                    "inference_flops_per_token": mean(arm["inference_flops_per_token"] for arm in each),
                    "training_flops": mean((run["dense"] if dense else run)["flops"] for run in runs),
                }
            )
    return sorted(lines, key=lambda line: line["arm"] != "dense")


def show(lines: Sequence[dict[str, Any]], experts: Sequence[dict[str, Any]]) -> None:
    for expert in experts:
        print(f"{expert['name']}: {expert['documents']} documents, {' '.join(expert['words'])}")
    names = [expert["name"] for expert in experts]
    print(
        f"\n{'arm':14} {'use':20} {'loss':>8} "
        + " ".join(f"{name:>9}" for name in names)
        + f" {'FLOPs/tok':>10} {'trained':>9}"
    )
    for line in lines:
        own = " ".join(f"{line['domains'][n]:9.4f}" if line["domains"].get(n) is not None else " " * 9 for n in names)
        flops = f"{line['inference_flops_per_token']:10.3g} {line['training_flops']:9.3g}"
        print(f"{line['arm']:14} {line['use']:20} {line['loss']:8.4f} {own} {flops}")


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=4e13, help="of each arm in all, default 4e13")
    parser.add_argument("--size", default="3x128", help="of equal experts and of the dense model, default 3x128")
    parser.add_argument("--sizes", default="2x96,3x128,3x128,4x160", help="of unequal experts")
    parser.add_argument("--head-width", type=int, default=32, help="default 32")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed-share", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--corpus", default="python-stdlib")
    parser.add_argument("--use", default="all, by likelihood", help="the way of choosing experts shown first")
    parser.add_argument("--more", default="", help="further flags for every arm, in one string")
    parser.add_argument("--out", type=Path, default=Path("runs/experts"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--smoke", action="store_true", help="sizes and FLOPs for seconds")
    options = parser.parse_args(words)
    if options.smoke:
        vars(options).update(SMOKE, head_width=16)
        options.more += (
            " --data.tokenizer bytes --train.heldout_tokens 4096 --execution.compile none --execution.precision float32"
        )
    found = [compared(options, seed) for seed in options.seeds]
    lines = rows(found, options.use)
    show(lines, found[0]["arms"]["M_Ho-I_Ho"]["experts"])
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        atomic.write_text(
            options.json, json.dumps({"settings": settings, "rows": lines, "seeds": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
