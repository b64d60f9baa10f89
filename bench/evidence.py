"""Make, or go on with, the comparisons in evidence/: `shoestring compare` on the recipes of this repository.

Every set is one comparison. The sets at equal tokens tune each arm's learning rates by three trials, which the verdict
charges, but for those of sync, whose settings were chosen by hand on other seeds, and streaming-tokens, where nothing was
tuned; the sets at equal seconds take the rates chosen there, on the same model; default-seconds is about the plan's own
model, and tunes. --quick is a slice for ten minutes on two cores: a few optimisers and schedules, fewer tokens, untuned. A
set that was stopped goes on where it was; of a set at equal tokens that is evidence already, only the arms whose recipe has
changed since, or is new, are run. Finished sets are copied to --evidence, without the folders of their runs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from shoestring.config import merge, overrides, read_toml

ROOT = Path(__file__).resolve().parent.parent
LEAN = ("design.toml", "environment.json", "runs.jsonl", "verdict.json", "report.html")
"""What of a comparison's folder is kept as evidence, beside arms/."""


@dataclass(frozen=True)
class Set:
    """A comparison. folder, base: of the recipes; every other recipe there is a candidate, unless `candidates` names them.
    first_seed: of the `seeds` seeds; above those on which the recipes' settings were chosen by hand. rates_of: the set
    whose chosen learning rates are taken, instead of tuning. margin: as of `shoestring compare`. flags: laid over
    every recipe."""

    folder: str
    base: str
    budget: str
    seeds: int = 3
    first_seed: int = 0
    tune: str | None = "lr=*0.33,*1,*3"
    rates_of: str | None = None
    candidates: tuple[str, ...] = ()
    margin: str | None = None
    flags: str = ""


FULL = {
    "optimizers-tokens": Set("optimizers", "adamw", "200ktok"),
    "schedules-tokens": Set("schedules", "cosine", "200ktok"),
    "optimizers-seconds": Set("optimizers", "adamw", "20s", tune=None, rates_of="optimizers-tokens"),
    "schedules-seconds": Set("schedules", "cosine", "20s", tune=None, rates_of="schedules-tokens"),
    "default-seconds": Set("default", "muon", "60s", tune="lr=*0.4,*1,*2.5"),
    "lowbit-tokens": Set("lowbit", "float", "500ktok", tune="lr=*1,*2,*4"),
    "lowbit-seconds": Set(
        "lowbit", "float", "30s", tune=None, rates_of="lowbit-tokens", candidates=("ternary", "qat_decay")
    ),
    "lowbit-bytes-tokens": Set("lowbit-bytes", "float", "1600ktok", seeds=5, tune="lr=*0.5,*1,*2"),
    "lowbit-bytes-seconds": Set("lowbit-bytes", "float", "60s", tune=None, rates_of="lowbit-bytes-tokens"),
    "optimizers-again-tokens": Set("optimizers-again", "adamw", "200ktok"),
    "small-batch-tokens": Set("small-batch", "batch_16", "100ktok"),
    "streaming-tokens": Set("streaming", "diloco", "921600tok", tune=None),
    "sync-tokens": Set("sync-tokens", "synchronous", "49152ktok", first_seed=1, tune=None),
    "sync-large-batch-tokens": Set(
        "sync-large-batch", "muloco_2bit", "157286ktok", first_seed=1, tune=None, margin="0.5%"
    ),
    "sync-feedback-tokens": Set("sync-feedback", "muloco_2bit", "98304ktok", seeds=8, first_seed=1, tune=None),
    "sync-two-layers-tokens": Set(
        "sync-two-layers",
        "muloco_2bit",
        "157286ktok",
        first_seed=1,
        tune=None,
        candidates=("synchronous", "diloco"),
        margin="0.5%",
    ),
    "sync-ablation-tokens": Set(
        "sync-ablation", "muloco_1_up_3_down", "24576ktok", seeds=6, first_seed=1, tune=None, margin="0.5%"
    ),
    "sync-gpu-tokens": Set(
        "sync-two-layers",
        "muloco_2bit",
        "157286ktok",
        first_seed=1,
        tune=None,
        candidates=(
            "muloco_2bit_no_feedback",
            "synchronous",
            "muloco_1_up_3_down",
            "muloco_1_up_3_down_no_feedback",
        ),
        margin="0.5%",
        flags="--execution.device cuda --execution.attention flash --execution.loss plain --train.micro_batch 512",
    ),
}
QUICK = {
    "quick-optimizers": Set(
        "optimizers", "adamw", "100ktok", tune=None, candidates=("muon", "soap", "lion", "adam_mini")
    ),
    "quick-schedules": Set("schedules", "cosine", "100ktok", tune=None, candidates=("linear", "wsd", "constant")),
}
SMOKE = {
    "smoke": Set(
        "optimizers",
        "adamw",
        "2ktok",
        seeds=2,
        tune=None,
        candidates=("lion",),
        flags="--model.layers 1 --model.width 32 --model.heads 2 --model.context 32 --data.vocabulary 1024 --train.batch 4 "
        "--train.heldout_tokens 256 --execution.compile none --execution.precision float32",
    )
}


def recipes(made: Set, out: Path, scratch: Path) -> list[Path]:
    """The recipes of a set, the base's first, with the learning rates chosen elsewhere laid over them."""
    folder = ROOT / "recipes" / made.folder
    names = list(made.candidates) or sorted(path.stem for path in folder.glob("*.toml") if path.stem != made.base)
    paths = [folder / f"{name}.toml" for name in (made.base, *names)]
    if made.rates_of is None:
        return paths
    verdict = out / made.rates_of / "verdict.json"
    if not verdict.is_file():
        raise SystemExit(f"{verdict} is not there: make the set {made.rates_of} first")
    arms = json.loads(verdict.read_text())["arms"]
    scratch.mkdir(parents=True, exist_ok=True)
    laid = []
    for path in paths:
        chosen = arms[path.stem]["tuning"]["chosen"] or {}
        words = [word for key, value in chosen.items() for word in (f"--{key}", str(value))]
        laid.append(scratch / path.name)
        laid[-1].write_text(tomli_w.dumps(merge(read_toml(path), overrides(words))))
    return laid


def make(name: str, made: Set, out: Path, evidence: Path | None, at_once: int) -> None:
    folder = out / name
    words = [sys.executable, "-m", "shoestring", "compare"]
    if (folder / "design.toml").is_file():
        words += ["--resume", str(folder)]
    else:
        words += [str(path) for path in recipes(made, out, out / f".{name}-recipes")]
        words += ["--budget", made.budget, "--seeds", str(made.seeds), "--out", str(folder)]
        words += ["--first-seed", str(made.first_seed)]
        words += ["--tune", made.tune] if made.tune else []
        words += ["--margin", made.margin] if made.margin else []
        words += made.flags.split()
    if evidence is not None and not made.budget.endswith("s") and (evidence / name / "design.toml").is_file():
        words += ["--runs-of", str(evidence / name)]
    if not made.budget.endswith("s"):
        words += ["--at-once", str(at_once)]
    print(f"{name}: {' '.join(words[1:])}", flush=True)
    if subprocess.run(words, check=False).returncode:
        raise SystemExit(f"{name} was not finished; the same command goes on with it")
    if evidence is not None:
        keep(folder, evidence / name)


def keep(folder: Path, target: Path) -> None:
    """Copy what is evidence of a finished comparison: of its arms, those of its design.

    Raises: SystemExit where one of them has no run.
    """
    names = read_toml(folder / "design.toml")["arms"]
    ran = {json.loads(line)["arm"] for line in (folder / "runs.jsonl").read_text().splitlines()}
    if missing := [name for name in names if name not in ran]:
        raise SystemExit(f"{folder}: no run was made of {', '.join(missing)}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in LEAN:
        shutil.copy(folder / file, target / file)
    (target / "arms").mkdir()
    for name in names:
        shutil.copy(folder / "arms" / f"{name}.toml", target / "arms")


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=f"some of {', '.join(FULL)}; default all")
    parser.add_argument("--quick", action="store_true", help=f"{' and '.join(QUICK)}, into --out only")
    parser.add_argument("--smoke", action="store_true", help="two tiny arms, into --out only: does it run?")
    parser.add_argument(
        "--out", type=Path, default=Path("comparisons"), help="where they are made, default comparisons"
    )
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, where the budget is not in seconds")
    parser.add_argument("--evidence", type=Path, default=ROOT / "evidence", help="where finished sets are copied")
    options = parser.parse_args(words)
    sets = SMOKE if options.smoke else QUICK if options.quick else FULL
    for name in options.sets:
        if name not in sets:
            parser.error(f"no set is named {name}: there are {', '.join(sets)}")
    for name in options.sets or sets:
        make(
            name, sets[name], options.out, None if options.quick or options.smoke else options.evidence, options.at_once
        )


if __name__ == "__main__":
    main(sys.argv[1:])
