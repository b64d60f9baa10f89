"""One WSD-S trunk against separate runs: are its checkpoints as good as runs of those budgets, for fewer tokens?

For each seed, `shoestring train` runs the trunk once over --tokens with a branch at each of --shares, and once for each share a
separate `wsd` run of that share of the tokens, which decays over the same share of its budget and warms up over the same
tokens. Printed: the held-out loss at each budget, of the trunk's milestone and of the separate run, the difference in
percent, and the trunk's tokens as a share of what the separate runs took together. Runs that are there are not made again.
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

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "schedules" / "cosine.toml"


def run(folder: Path, tokens: float, seed: int, *words: str) -> dict[str, Any]:
    """The summary of a run, made unless it is there."""
    if not (folder / "summary.json").is_file():
        command = [sys.executable, "-m", "shoestring", "train", str(RECIPE), "--out", str(folder)]
        command += ["--budget", f"{tokens:.0f}tok", "--seed", str(seed), "--train.sample_tokens", "0", *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{' '.join(command)}\n{ended.stdout}{ended.stderr}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def compared(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The losses at each share of the tokens, for one seed."""
    shared = ["--optim", "muon", "--schedule.decay", str(options.decay), "--optim.lr", str(options.lr)]
    trunk = options.out / f"trunk-seed-{seed}"
    branches = json.dumps(options.shares)
    words = ["--schedule.name", "wsd_s", "--schedule.branches", branches, *shared]
    run(trunk, options.tokens, seed, *words, "--train.warmup", str(options.warmup))
    milestones = json.loads((trunk / "milestones.json").read_text())
    rows = []
    for share, milestone in zip(options.shares, milestones, strict=True):
        folder = options.out / f"separate-{share:g}-seed-{seed}"
        words = ["--schedule.name", "wsd", *shared, "--train.warmup", f"{options.warmup / share:.6g}"]
        alone = run(folder, share * options.tokens, seed, *words)
        rows.append(
            {
                "share": share,
                "trunk": milestone["heldout_loss"],
                "separate": alone["heldout_loss"],
                "percent": 100 * (milestone["heldout_loss"] / alone["heldout_loss"] - 1),
                "trunk_tokens": milestone["tokens"],
                "separate_tokens": alone["tokens"],
            }
        )
        print(f"seed {seed}, {share:g}: trunk {rows[-1]['trunk']:.4f}, separate {rows[-1]['separate']:.4f}", flush=True)
    return {"seed": seed, "rows": rows}


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=300e3, help="of the trunk, default 300 k")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="budgets, the last is 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--decay", type=float, default=0.1, help="share of each budget, default 0.1")
    parser.add_argument("--warmup", type=float, default=0.02, help="share of the trunk's tokens, default 0.02")
    parser.add_argument("--lr", type=float, default=4e-3, help="AdamW's, default 4e-3")
    parser.add_argument("--out", type=Path, default=Path("runs/wsd-s"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args(words)
    found = [compared(options, seed) for seed in options.seeds]
    print("\nheld-out loss of the trunk's milestones against separate runs, percent")
    for place, share in enumerate(options.shares):
        gaps = [one["rows"][place]["percent"] for one in found]
        print(f"{share:g} of the tokens: mean {mean(gaps):+.2f} %, {min(gaps):+.2f} to {max(gaps):+.2f} %")
    rows = found[0]["rows"]
    spent = rows[-1]["trunk_tokens"] / sum(row["separate_tokens"] for row in rows)
    print(f"tokens of the trunk: {spent:.1%} of those of the separate runs")
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        atomic.write_text(
            options.json, json.dumps({"settings": settings, "runs": found, "share_of_tokens": spent}, indent=1)
        )


if __name__ == "__main__":
    main(sys.argv[1:])
