"""Comparison folders made up for the tests: what `shoestring compare` would have written."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tomli_w

from shoestring.atomic import write_text

# two-sided 95 % points of Student's t, by degrees of freedom
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}


@dataclass
class Way:
    """An arm to make up. effect: its true difference to the base in nats. fails: runs of it that fail."""

    name: str
    effect: float = 0.0
    optim: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "wsd", "decay": 0.4})
    tune: tuple[float, ...] = ()
    edge: bool = False
    fails: int = 0
    flags: tuple[str, ...] = ()


ADAMW = Way("adamw", optim={"name": "adamw", "lr": 0.001, "beta2": 0.95})
MUON = Way("muon", -0.05, optim={"name": "muon", "lr": 0.02, "polar": "jordan"})


def config(way: Way) -> dict[str, Any]:
    mixer = {"name": "attention", "qk_norm": True}
    return {
        "budget": "180s", "seed": 0, "model": {"layers": 4, "width": 192, "token_mixer": mixer},
        "data": {"corpus": "python-stdlib"}, "optim": {**way.optim}, "schedule": {**way.schedule},
    }  # fmt: skip


def curve(end: float, seconds: float, chance: random.Random, points: int = 12) -> list[dict[str, float]]:
    rows = []
    for point in range(1, points + 1):
        progress = point / points
        loss = end + 4.5 * math.exp(-9 * progress) + 0.5 * (1 - progress) + chance.gauss(0, 0.01) * (progress < 1)
        rows.append({"progress": progress, "seconds": seconds * progress * chance.uniform(0.995, 1.005),
                     "flops": 1.2e15 * progress, "tokens": 4e6 * progress, "loss": loss})  # fmt: skip
    return rows


def line(way: Way, seed: int, loss: float | None, chance: random.Random, **more: Any) -> dict[str, Any]:
    found = {
        "arm": way.name, "seed": seed, "purpose": "judge", "settings": {}, "stopped": "finished", "reason": "",
        "loss": loss, "bits_per_byte": loss and loss / 2.4, "seconds": 180.0, "flops": 1.2e15, "tokens": 4_000_000,
        "steps": 1950, "step_seconds": 0.09, "peak_memory": 900_000_000, "parameters": 2_100_000,
        "curve": curve(loss or 6.0, 180.0, chance, 12 if loss else 3),
    }  # fmt: skip
    return found | more


def chosen_rate(way: Way) -> float:
    return (way.tune[-1] if way.edge else way.tune[len(way.tune) // 2]) if way.tune else 0.0


def tuning(way: Way, loss: float) -> dict[str, Any] | None:
    if not way.tune:
        return None
    best = chosen_rate(way)
    tried = [{"settings": {"optim.lr": lr}, "loss": loss + 0.12 * math.log10(lr / best) ** 2} for lr in way.tune]
    spent = {"seconds": 60.0 * len(tried), "flops": 4e14 * len(tried), "tokens": 1.3e6 * len(tried)}
    return {"tried": tried, "chosen": {"optim.lr": best}, "edge": way.edge, "spent": spent}


def make_comparison(
    folder: Path, ways: list[Way] | None = None, *, seeds: int = 5, unit: str = "seconds", noise: float = 0.015,
    sequential: bool = False, statement: str | None = None,
) -> Path:  # fmt: skip
    """Write a whole comparison folder, its first way the base; returns it."""
    ways = ways or [ADAMW, MUON]
    chance = random.Random(1)
    rows: list[dict[str, Any]] = []
    losses: dict[str, dict[int, float | None]] = {}
    level = [2.8 + chance.gauss(0, 0.02) for _ in range(seeds)]
    for way in ways:
        losses[way.name] = {seed: level[seed] + way.effect + chance.gauss(0, noise) for seed in range(seeds)}
        for seed, loss in losses[way.name].items():
            if seed < way.fails:
                losses[way.name][seed] = None
                why = {"stopped": "failed", "reason": "the loss is not finite at step 180"}
                rows.append(line(way, seed, None, chance, **why))
            else:
                rows.append(line(way, seed, loss, chance))
        chosen = chosen_rate(way)
        for row in rows[-seeds:]:
            row["settings"] = {"optim.lr": chosen} if way.tune else {}
        rows += [
            line(
                way,
                1000,
                2.9 + 0.12 * math.log10(lr / chosen) ** 2,
                chance,
                purpose="tune",
                settings={"optim.lr": lr},
                curve=[],
            )
            for lr in way.tune
        ]
    amounts = {"seconds": 180.0, "flops": 1.2e15, "tokens": 4_000_000}
    spent = {"seconds": 180.3, "flops": 1.2e15, "tokens": 4_001_000}
    arms: dict[str, Any] = {}
    comparisons: list[dict[str, Any]] = []
    for way in ways:
        own = [loss for loss in losses[way.name].values() if loss is not None]
        tuned = tuning(way, fmean(own)) if own else None
        arms[way.name] = {
            "runs": len(own), "failed": way.fails, "reasons": ["the loss is not finite at step 180"] * way.fails,
            "loss": {"mean": fmean(own) if own else None, "sd": stdev(own) if len(own) > 1 else None,
                     "values": {str(seed): loss for seed, loss in losses[way.name].items()}},
            "bits_per_byte": fmean(own) / 2.4 if own else None, "spent": spent if own else None, "step_seconds": 0.092,
            "peak_memory": 900_000_000, "parameters": 2_100_000, "tuning": tuned,
            "total_spent": {key: value * (seeds + len(way.tune)) for key, value in spent.items()},
        }  # fmt: skip
    for way in ways[1:]:
        base, theirs = losses[ways[0].name], losses[way.name]
        pairs = [(s, a - b) for s in theirs if (a := theirs[s]) is not None and (b := base[s]) is not None]
        found = [difference for _, difference in pairs]
        word, difference, interval, sd = "not comparable", None, None, None
        if len(found) > 1:
            difference, sd = fmean(found), stdev(found)
            half = STUDENT[len(found) - 1] * sd / math.sqrt(len(found))
            interval = [difference - half, difference + half]
            word = "better" if interval[1] < 0 else "worse" if interval[0] > 0 else "no difference shown"
        share = None if difference is None or abs(difference) > 1 else max(0.05, 0.99 - 3 * abs(difference))
        ratio = share and difference and (1 / share if difference < 0 else share)
        flags = [*way.flags]
        flags += [f"'{way.name}' failed at {way.fails} seeds: not among the pairs"] * (way.fails > 0)
        flags += [f"'{way.name}' is best at the edge of what was tried: tune wider"] * way.edge
        comparisons.append({
            "candidate": way.name, "base": ways[0].name, "verdict": word, "pairs": len(found), "difference": difference,
            "interval": interval, "confidence": 0.95, "p_value": 0.004 if interval else None, "standard_deviation": sd,
            "minimum_detectable_effect": sd and 1.9 * sd, "pairs_needed": sd and 7,
            "speed_up": {"share": share, "ratio": ratio, "per_seed": [{"seed": 0, "share": share, "ratio": ratio}],
                         "how": "the share of the budget in which the candidate's mean curve reaches the base's final loss"},
            "extra_memory": -12_500_000, "extra_step_seconds": 0.0042, "flags": flags,
            "sentence": f"{way.name} is {word}: {difference or 0.0:+.3f} nats over {len(found)} pairs.",
            "per_seed": [{"seed": seed, "difference": value} for seed, value in pairs],
        })  # fmt: skip
        write_text(folder / "arms" / f"{way.name}.toml", tomli_w.dumps(config(way)))
    write_text(folder / "arms" / f"{ways[0].name}.toml", tomli_w.dumps(config(ways[0])))
    better = [one["candidate"] for one in comparisons if one["verdict"] == "better"]
    words = f"At 3m 00s a run, {', '.join(better) or 'nothing'} did better than {ways[0].name}."
    verdict = {
        "unit": unit, "amount": amounts[unit], "confidence": 0.95, "base": ways[0].name, "seeds": list(range(seeds)),
        "sequential": sequential, "statement": statement or words, "arms": arms, "comparisons": comparisons,
    }  # fmt: skip
    write_text(folder / "verdict.json", json.dumps(verdict, indent=1))
    write_text(folder / "runs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    environment = {"platform": "Linux", "machine": {"name": "a CPU", "threads": 2}, "packages": {"torch": "2.13.0"}}
    write_text(folder / "environment.json", json.dumps(environment))
    return folder


def many(count: int) -> list[Way]:
    """A base and `count` candidates of all kinds: better, worse, level, one hopeless, one that fails."""
    names = ["soap", "sophia", "lion", "lion-kappa", "adam-mini", "lamb", "lars", "adamp", "sgdp", "frugal", "opt-amsgrad",
             "shampoo", "sgd", "schedule-free", "muon", "muon-exact-svd-polar-factor", "wsd-s", "cosine", "linear"]  # fmt: skip
    chance = random.Random(3)
    lrs = (3e-4, 1e-3, 3e-3)
    ways = [Way("adamw", optim=ADAMW.optim, tune=lrs)]
    for place, name in enumerate(names[:count]):
        effect = chance.uniform(-0.08, 0.08)
        ways.append(
            Way(name, effect, optim={"name": name, "lr": 0.001, "momentum": 0.9}, tune=lrs, edge=place % 5 == 0)
        )
    ways[3].effect = 2.3
    ways[4].effect = 0.0
    ways[5].fails, ways[6].fails = 4, 1
    ways[7].flags = ("it spent 3.2 % less time than the base",)
    return ways
