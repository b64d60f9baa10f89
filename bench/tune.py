"""Ways to tune a model at equal seconds: what is gained on new text, and what is forgotten of old, by method and share of replay.

Every arm is a recipe of recipes/tune/. For each, rates are tried first, on a seed that is not judged, and what that takes is on
the arm's account. Then each seed is one run of `--seconds`, everything it does counted, in a process of its own, arms in turn; the
texts are prepared before. A seed sets the order of the text for all arms, and differences within a seed from the base (`full`, no
replay) are judged by Student's paired test. Replay shares are tried with `--replayed` methods at the rates found without.

`--memory SIZE` is peft's question: each arm takes the largest batch that stays within it in trials of a few steps, which take no
longer than a run has and are on its account. Without it all arms have one batch.

    python bench/tune.py --out runs/tune --json tune.json --figure tune.svg    # the model of 1.5 M, C++ headers as new text
    python bench/tune.py --base smollm2 --new chats --methods full lora road --seeds 3 --seconds 240 --out runs/tune-smollm2

Runs that are there are not made again: stopped, it goes on where it was. --smallest is a run of seconds that shows nothing but that
everything works.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import chat_text
from reference_models import NAMES, reference_model

from shoestring import atomic
from shoestring.budget.machine import probe
from shoestring.budget.units import parse_memory
from shoestring.compare.statistics import LEAST_PAIRS, paired
from shoestring.config import Tree, merge, overrides, read_toml
from shoestring.train.run_folder import environment

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "tune"
BASE = "full"
METHODS = (
    "full", "lora", "rslora", "dora", "adalora", "road", "compacter", "key_value_bottleneck", "llm_ade", "minifinetuning",
    "classp", "egn", "rewarmed",
)  # fmt: skip
CHATS = "chats"
TUNING_SEED = 1_000_000
"""Of the runs that try rates and batches."""
CONFIDENCE = 0.95
BATCHES = (1, 2, 4, 8, 16, 32, 64)
TRIAL_STEPS = 4
"""Of the runs that look at memory."""
MARGIN = 0.95
"""Of the memory, what a trial may take: longer runs came to 4 % more than their trials of 3 steps."""
SMALLEST = (
    "--base 1.5m --quick --methods full lora --replays 0 0.5 --replayed lora --rates 1 --seeds 1 --budget 1ktok --batch 2 -- "
    "--model.context=64 --train.heldout_tokens=512 --old.tokens=512 --execution.compile=none --execution.attention=flash "
    "--execution.loss=plain --execution.precision=float32 --execution.threads=1"
)


def headers() -> str:
    """Technical text that every machine with torch has, and that is no Python: the headers of its C++ core."""
    import torch

    return str(Path(torch.__file__).parent / "include" / "c10")


def worker(path: Path) -> int:
    """One run, as a file says: in a process of its own, which has the memory to itself."""
    from shoestring.launch.launch import Launch
    from shoestring.launch.tuning import tuning_request

    asked: dict[str, Any] = json.loads(path.read_text())
    request = tuning_request(asked["base"], asked["method"], asked["asked"], asked["old"], asked["replay"])
    with Launch() as launch:
        out = Path(asked["out"])
        ended = launch.resume(out) if (out / "config.toml").exists() else launch.begin(request, out)
    return 0 if ended.outcome.stopped == "finished" else 1


class Bench:
    """options: of the command. more: keys of the configuration that hold for all runs."""

    def __init__(self, options: argparse.Namespace, more: Tree) -> None:
        self.options, self.more = options, more
        self.base = str(reference_model(options.base, quick=options.quick)) if options.base in NAMES else options.base
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, method: str, asked: Tree, replay: float, budget: str) -> dict[str, Any]:
        """The summary of a run, made unless it is there; {} where it failed, which is said."""
        folder = self.out / name
        if not (folder / "summary.json").exists():
            recipe = read_toml(RECIPES / f"{method}.toml")
            edits: Any = recipe.get("edits", [])
            given: Tree = {"budget": budget, "data": {"corpus": self.options.new}, "train": {"sample_tokens": 0}}
            described = {
                "base": self.base,
                "method": edits[0]["name"] if edits else "full",
                "asked": merge(merge(merge(recipe, given), self.more), asked),
                "old": self.options.old,
                "replay": replay,
                "out": str(folder),
            }
            path = self.out / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path, json.dumps(described))
            print(f"{name}", flush=True)
            done = subprocess.run(
                [sys.executable, __file__, "--worker", str(path)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
                print(f"  failed: {last[:200]}", flush=True)
                return {}
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # those of all runs would fill a disk
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return summary

    def tuned(self, method: str) -> dict[str, Any]:
        """The rate and the batch of a method: the least loss on new text, of runs on a seed that is not judged; what that took."""
        recipe: Any = read_toml(RECIPES / f"{method}.toml")
        rate, seconds, batch = float(recipe["optim"]["lr"]), 0.0, int(self.options.batch)
        if self.options.memory is not None:
            batch, seconds = self._largest_batch(method)
        tried = []
        for factor in self.options.rates:
            asked = _rate(rate * factor) | {"seed": TUNING_SEED}
            found = self.run(
                f"{method}/rate-{rate * factor:.3g}",
                method,
                merge(asked, {"train": {"batch": batch}}),
                0.0,
                self.options.budget,
            )
            seconds += found.get("seconds", 0.0)
            tried.append((_figures(found)[0], rate * factor))
        if not any(math.isfinite(gain) for gain, _ in tried):
            raise SystemExit(f"no run of {method} came to an end: give more --seconds, or lower --rates")
        best = max(tried, key=lambda each: each[0] if math.isfinite(each[0]) else -math.inf)
        edge = len(tried) > 1 and best[1] in (min(r for _, r in tried), max(r for _, r in tried))
        return {"rate": best[1], "batch": batch, "edge": edge, "tuning_seconds": seconds}

    def _largest_batch(self, method: str) -> tuple[int, float]:
        """(sequences of the largest step whose trial stays within the memory, and takes no longer than a run has; seconds that the
        search took)."""
        seconds, fits = 0.0, 0
        for batch in BATCHES:  # upwards, so that none takes much more than what is given
            context = int(self.more.get("model", {}).get("context", 512))
            asked: Tree = {"train": {"batch": batch, "micro_batch": batch}, "seed": TUNING_SEED}
            budget = f"{TRIAL_STEPS * batch * context}tok"
            found = self.run(f"{method}/memory-batch-{batch}", method, asked, 0.0, budget)
            seconds += found.get("seconds", 0.0)
            long = self.options.long is not None and found.get("seconds", 0.0) > self.options.long
            if not found or long or found["peak_memory"] > MARGIN * self.options.memory:
                break
            fits = batch
        if not fits:
            raise SystemExit(f"{method} takes more than the memory given at a batch of 1: give more with --memory")
        return fits, seconds

    def judged(self, method: str, replay: float, setting: dict[str, Any]) -> dict[str, Any]:
        """The runs of an arm, a seed each."""
        runs = []
        for seed in range(self.options.seeds):
            asked = merge(_rate(setting["rate"]), {"seed": seed, "train": {"batch": setting["batch"]}})
            found = self.run(f"{method}/replay-{replay:g}-seed-{seed}", method, asked, replay, self.options.budget)
            gain, forgotten = _figures(found)
            runs.append({
                "seed": seed, "gain": gain, "forgotten": forgotten,
                **{key: found.get(key) for key in ("seconds", "steps", "tokens", "flops", "peak_memory")},
            })  # fmt: skip
        return {"method": method, "replay": replay, **setting, "runs": runs}


def _rate(rate: float) -> Tree:
    return {"optim": {"lr": rate}, "fallback": {"lr": rate}}


def _figures(summary: dict[str, Any]) -> tuple[float, float]:
    """(gain on new text, forgotten of old), nats a token; not finite where the run failed."""
    both = summary.get("tuning", {})
    return float(both.get("new", {}).get("gain", math.nan)), float(both.get("old", {}).get("forgotten", math.nan))


def with_verdicts(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The arms, each with its means and what its paired differences from the base show."""
    base = next(arm for arm in arms if arm["method"] == BASE and not arm["replay"])
    for arm in arms:
        for key, better in (("gain", 1), ("forgotten", -1)):
            own = [run[key] for run in arm["runs"]]
            arm[key] = mean(own) if all(map(math.isfinite, own)) else None
            if arm is base:
                continue
            pairs = [
                mine[key] - theirs[key]
                for mine, theirs in zip(arm["runs"], base["runs"], strict=True)
                if math.isfinite(mine[key]) and math.isfinite(theirs[key])
            ]
            found = paired(pairs, CONFIDENCE, 1.0)
            word = "no difference shown"
            if found.pairs < LEAST_PAIRS:
                word = "too few pairs"
            elif found.shown and found.difference is not None:
                word = "better" if found.difference * better > 0 else "worse"
            arm[f"{key}_against_base"] = {
                "difference": found.difference, "interval": found.interval, "pairs": found.pairs, "verdict": word,
            }  # fmt: skip
    return arms


def draw(arms: Sequence[dict[str, Any]], target: Path) -> None:
    """Write the figure, an SVG: forgotten across, gained up; a method's shares of replay are joined."""
    from shoestring.report.drawing import COLOUR, SERIES, label_points, name_axes, panel, save, style

    with style():
        figure, axes = panel(720, 420, left=56, right=100, top=44)
        points = []
        known = [arm for arm in arms if arm["gain"] is not None and arm["forgotten"] is not None]
        for place, method in enumerate(dict.fromkeys(arm["method"] for arm in known)):
            own = sorted((arm for arm in known if arm["method"] == method), key=lambda arm: arm["replay"])
            colour = SERIES[place % len(SERIES)]
            x, y = [arm["forgotten"] for arm in own], [arm["gain"] for arm in own]
            axes.plot(x, y, "-", color=COLOUR[colour], linewidth=1.2)
            for arm in own:
                face = COLOUR["paper"] if arm["replay"] else COLOUR[colour]
                axes.plot(
                    [arm["forgotten"]], [arm["gain"]], "o", color=COLOUR[colour], markerfacecolor=face, markersize=6
                )
            points.append((x[0], y[0], method.replace("_", " "), colour))
        axes.margins(0.1)
        name_axes(
            axes,
            "forgotten: loss on old text after, less before, nats a token",
            "gained on new text, nats a token; hollow points: with replay",
        )
        label_points(axes, points, size=11)
        with open(target, "wb") as file:
            save(figure, file, "svg")


def table(arms: Sequence[dict[str, Any]]) -> str:
    """Lines for people."""
    lines = [
        f"{'method':22} {'replay':>6} {'gain':>8} {'forgotten':>10} {'steps':>6} {'MiB':>6} {'tuning s':>9}  against full"
    ]
    for arm in arms:
        steps, memory = (mean(run[key] or 0 for run in arm["runs"]) for key in ("steps", "peak_memory"))
        gain, lost = (math.nan if arm[key] is None else arm[key] for key in ("gain", "forgotten"))
        said = "; ".join(
            f"{what} {arm[f'{key}_against_base']['verdict']}"
            for key, what in (("gain", "gain"), ("forgotten", "keeping"))
            if f"{key}_against_base" in arm
        )
        lines.append(
            f"{arm['method']:22} {arm['replay']:6.2f} {gain:8.4f} {lost:10.4f} {steps:6.0f} {memory / 2**20:6.0f} "
            f"{arm['tuning_seconds']:9.0f}  {said}"
        )
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    if words[:1] == ["--worker"]:
        return worker(Path(words[1]))
    if "--smallest" in words:
        here = [word for word in words if word != "--smallest"]
        set_apart = SMALLEST.split()
        cut = set_apart.index("--")
        words = [*set_apart[:cut], *here, *set_apart[cut:]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="1.5m", help=f"{', '.join(NAMES)}, or any PLACE (default 1.5m)")
    parser.add_argument("--quick", action="store_true", help="with a reference model that is hardly trained")
    parser.add_argument(
        "--new",
        help=f"the corpus to learn (default: the C++ headers of torch); '{CHATS}': questions about functions of libraries, "
        "with answers (chat_text.py)",
    )
    parser.add_argument("--old", default="python-stdlib", help="what forgetting is judged on")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[0.33, 1.0, 3.0, 10.0], help="factors on a recipe's rate"
    )
    parser.add_argument("--replays", nargs="+", type=float, default=[0.0, 0.1, 0.25], metavar="SHARE")
    parser.add_argument("--replayed", nargs="*", choices=METHODS, default=["full", "lora"], help="methods with replay")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=45, help="of every run (default 45)")
    parser.add_argument("--budget", help="of every run, in place of --seconds: 100ktok, say")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--memory", type=parse_memory, metavar="SIZE", help="equal peak memory: the batch is found for it"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tune"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--smallest", action="store_true", help="seconds that show nothing but that everything works")
    cut = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:cut])
    named = options.new or "the C++ headers of torch"
    options.long = None if options.budget else options.seconds
    options.new, options.budget = options.new or headers(), options.budget or f"{options.seconds:g}s"
    if options.new == CHATS:
        options.new = str((options.out / "chats.jsonl").resolve())
        chat_text.write(Path(options.new))
    if BASE not in options.methods:
        options.methods.insert(0, BASE)
    bench = Bench(options, overrides(words[cut + 1 :]))
    if not bench.run("prepared", BASE, {"seed": TUNING_SEED}, 0.0, "1ktok"):
        raise SystemExit("the texts cannot be prepared")
    settings = {method: bench.tuned(method) for method in options.methods}
    arms = [
        bench.judged(method, replay, settings[method])
        for replay in options.replays
        for method in options.methods
        if not replay or method in options.replayed
    ]
    with_verdicts(arms)
    print(table(arms))
    if options.json:
        found = {
            "base": options.base, "new": named, "old": options.old, "budget": options.budget, "seeds": options.seeds,
            "memory": options.memory, "arms": arms, "environment": environment(probe()),
        }  # fmt: skip
        atomic.write_text(options.json, json.dumps(found, indent=1) + "\n")
    if options.figure:
        draw(arms, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
