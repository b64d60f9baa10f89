"""Do plans hold, and are those by laws better than those by rule?

First make a ladder on the corpus: `shoestring ladder --budget 60m --background`. Its runs lie in the cache, where this looks.

--plans N: N plans, log-spaced from --from to --to seconds, of the planned size and of the sizes before and after it in turn.
Each is trained once, on as many tokens as it expects, as a user does it, in a process of its own. Told are the errors of the
loss that the plan expects, of its seconds, and how many losses lie within the plan's 90 % interval. None of the runs is used in
fitting: nothing is learned from them. The aims are 2 % and 8 %. --workers 4 has four processes train.

--beside S ...: for each of --corpora, `shoestring compare` judges the plan by law beside the plan by rule at equal seconds, with
--seeds paired seeds. A corpus without a ladder of its own is planned for by the ladder of another with the same tokenizer.

--json FILE: settings, environment and every figure, kept after each run: the same command on the same machine goes on where it was
stopped. --smallest: one short plan and one short pair, to see that it works.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from stopped import begun

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.plan import rules
from shoestring.train.run_folder import environment

SMALLEST = [
    "--data.tokenizer=bytes",
    "--model.context=32",
    "--train.heldout_tokens=256",
    "--train.sample_tokens=8",
    "--execution.compile=none",
    "--execution.precision=float32",
    "--execution.loss=plain",
    "--execution.attention=flash",
]


def command(*words: object) -> str:
    """What `shoestring` prints. Raises: SystemExit, with what it said, where it fails."""
    line = [sys.executable, "-m", "shoestring", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def planned(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("plan", "--json", *words))
    return found


def shape_words(plan: dict[str, Any], offset: int) -> list[str]:
    """The size so many rungs from the planned one, where there is one; else the planned."""
    model = plan["configuration"]["model"]
    sizes = [(shape.layers, shape.width) for shape in rules.LADDER]
    own = (model["layers"], model["width"])
    at = sizes.index(own) + offset if own in sizes else -1
    shape = rules.LADDER[at] if 0 <= at < len(sizes) else rules.LADDER[sizes.index(own)]
    return [
        f"--model.layers={shape.layers}",
        f"--model.width={shape.width}",
        f"--model.heads={shape.width // shape.head_width}",
    ]


def trained(seconds: float, offset: int, seed: int, more: Sequence[str], scratch: Path) -> dict[str, Any]:
    """One plan, and the run that it is of."""
    first = planned("--budget", f"{seconds:g}s", *more)
    shape = shape_words(first, offset)
    sized = first if offset == 0 else planned("--budget", f"{seconds:g}s", *shape, *more)
    tokens = int(sized["expected"]["tokens"])
    words = ["--budget", f"{tokens}tok", *shape, *more]
    said = planned(*words)["expected"]
    folder = scratch / f"run-{seed}"
    command("train", *words, "--seed", seed, "--out", folder)
    summary = json.loads((folder / "summary.json").read_text())
    loss = said["loss"]
    found = {
        "asked": seconds,
        "parameters": summary["parameters"],
        "tokens": summary["tokens"],
        "seconds_expected": said["seconds"],
        "seconds": summary["seconds"],
        "seconds_error": said["seconds"] / summary["seconds"] - 1,
        "loss": summary["heldout_loss"],
        "loss_expected": loss and loss[0],
        "loss_error": loss and loss[0] / summary["heldout_loss"] - 1,
        "covered": loss and loss[1] <= summary["heldout_loss"] <= loss[2],
        "made_by": said["made_by"],
    }
    error = "no ladder here" if loss is None else f"{found['loss_error']:+.2%}"
    print(
        f"{seconds:7.0f} s {summary['parameters'] / 1e6:7.2f} M {summary['tokens'] / 1e6:8.2f} Mtok: took "
        f"{summary['seconds']:7.1f} s ({found['seconds_error']:+.1%}), loss {summary['heldout_loss']:.4f} ({error})",
        flush=True,
    )
    return found


def beside(corpus: str, seconds: float, seeds: int, more: Sequence[str], scratch: Path) -> dict[str, Any]:
    """The verdict on the plan by law beside that by rule."""
    words = ["--budget", f"{seconds:g}s", "--data.corpus", corpus, *more]
    recipes, by = [], {}
    for name, way in (("rule", ["--by-rule"]), ("law", [])):
        path = scratch / f"{name}.toml"
        path.write_text(command("plan", "--toml", *way, *words))
        by[name] = planned(*way, *words)["expected"]["made_by"]
        recipes.append(path)
    said = json.loads(command("compare", *recipes, "--seeds", seeds, "--json", "--out", scratch / "compared"))
    for one in said["comparisons"]:
        print(f"{corpus}, {seconds:g} s; {by['law']}: {one['sentence']}", flush=True)
    return {"corpus": corpus, "seconds": seconds, "made_by": by, "compared": said}


def summed(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("seconds_error", "loss_error"):
        errors = [abs(run[name]) for run in runs if run[name] is not None]
        if errors:
            found[name] = {"mean": mean(errors), "median": median(errors), "largest": max(errors)}
            print(
                f"{name}: mean {mean(errors):.2%}, median {median(errors):.2%}, largest {max(errors):.2%} of {len(errors)}"
            )
    covered = [run["covered"] for run in runs if run["covered"] is not None]
    if covered:
        found["covered"] = sum(covered) / len(covered)
        print(f"within the 90 % interval: {sum(covered)} of {len(covered)}")
    return found


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=20, help="default %(default)s; 0: none")
    parser.add_argument("--from", dest="least", type=float, default=60.0, help="seconds, default %(default)s")
    parser.add_argument("--to", dest="most", type=float, default=1200.0, help="seconds, default %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="that train each plan, default %(default)s")
    parser.add_argument(
        "--beside", type=float, nargs="*", default=[60.0, 300.0, 1200.0], help="seconds, default 60 300 1200"
    )
    parser.add_argument("--corpora", nargs="*", default=[], help="as data.corpus, for --beside")
    parser.add_argument("--seeds", type=int, default=3, help="paired, for --beside; default %(default)s")
    parser.add_argument("--first-seed", type=int, default=100, help="of the plans' runs, default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument(
        "--smallest", action="store_true", help="to see that it works; nothing it prints is a measurement"
    )
    options, more = parser.parse_known_args(words)
    if options.smallest:
        options.plans, options.least, options.most, options.beside, options.seeds = 1, 8.0, 8.0, [8.0], 2
        options.corpora, more = ["python-stdlib"], [*SMALLEST, *more]
    workers = [f"--workers={options.workers}", "--sync=muloco"] if options.workers > 1 else []
    settings = {key: value for key, value in vars(options).items() if key != "json"} | {"more": more}
    machine = environment(probe())
    before = begun(options.json, settings, machine)
    runs, pairs, summary = before.get("plans", []), before.get("beside", []), dict[str, Any]()

    def keep() -> None:
        if options.json:
            content = {
                "settings": settings,
                "environment": machine,
                "plans": runs,
                "summary": summary,
                "beside": pairs,
            }
            atomic.write_text(options.json, json.dumps(content, indent=1, default=str) + "\n")

    for corpus in [[], *(["--data.corpus", name] for name in options.corpora)]:
        planned("--budget", "1Mtok", *corpus, *more)  # its text is prepared, and the machine probed, before any clock
    for number, seconds in enumerate(np.geomspace(options.least, options.most, options.plans)):
        if number < len(runs):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            offset = (0, -1, 1)[number % 3]
            runs.append(trained(float(seconds), offset, options.first_seed + number, [*workers, *more], Path(scratch)))
        keep()
    summary.update(summed(runs))
    for number, (corpus, seconds) in enumerate(itertools.product(options.corpora, options.beside)):
        if number >= len(pairs):
            with tempfile.TemporaryDirectory() as scratch:
                pairs.append(beside(corpus, seconds, options.seeds, more, Path(scratch)))
            keep()
    keep()


if __name__ == "__main__":
    main(sys.argv[1:])
