"""Part 2 of slow_link.py: how long training takes over links of given rates, beside the model of it."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from link_arms import WAYS, Arm, Bytes
from link_bytes import within
from link_figure import Curve
from link_model import Link
from link_record import Plan, Record
from links import Links

LEAST_STEPS = 8
"""Of an arm whose end is worked out."""


def compute_of(found: dict[str, Any]) -> float:
    """Seconds of compute in a step of an arm: processor time of all its workers over the cores that they share."""
    seconds: float = found["processor"] / len(os.sched_getaffinity(0)) / found["steps"]
    return seconds


def measure_seconds(net: Links, plan: Plan, record: Record) -> list[Curve]:
    """Part 2, the fastest links first, as their compute says how many steps of the next fit. Returns the figure's curves."""
    print(f"\nseconds, {plan.tokens:,} tokens in {plan.steps} steps", flush=True)
    shape, rows, curves = plan.shape, list[dict[str, Any]](), list[Curve]()
    for name in plan.ways:
        way = WAYS[name]
        known, computes, points = Bytes(shape, way, plan.every), list[float](), []
        for rate in sorted(plan.rates, reverse=True):
            link = Link(rate, plan.delay)
            arm = Arm(name, plan.every, plan.steps, plan.steps, rate, plan.delay)
            expected = known.predicted(plan.steps, computes[-1] if computes else 0.0, link).seconds
            if expected > plan.most_seconds and way.ddp:
                fitting = int(plan.steps * plan.most_seconds / expected)
                arm = replace(arm, steps=min(plan.steps, max(LEAST_STEPS, fitting)))
            found = record.arm(net, shape, arm)
            seconds, whole = found["seconds"] * found["asked"] / found["steps"], not found["extrapolated"]
            computes.append(compute_of(found))
            model = known.predicted(plan.steps, computes[-1], link)
            rows.append(
                {
                    "way": name,
                    "rate": rate,
                    "steps": found["steps"],
                    "measured": found["seconds"] if whole else None,
                    "extrapolated": None if whole else seconds,
                    "compute": computes[-1] * plan.steps,
                    "model": model.seconds,
                    "ratio": seconds / model.seconds,
                    "model_exposed": model.exposed,
                    "kernel_to_formula": found["kernel"]["sent"] / known.sent(found["steps"]),
                }
            )
            points.append((rate / 1e6, seconds, whole))
        low, high = min(plan.rates) / 1.3, max(plan.rates) * 1.3
        along = np.geomspace(low, high, 61)
        # between the rates where it was measured, compute is taken to change evenly with the rate's logarithm
        between = np.interp(np.log(along), np.log(sorted(plan.rates)), computes[::-1])
        line = [
            (rate / 1e6, known.predicted(plan.steps, compute, Link(rate, plan.delay)).seconds)
            for rate, compute in zip(along.tolist(), between.tolist(), strict=True)
        ]
        curves.append(Curve(way.name, line, points))
    show_seconds(plan, rows)
    record.content["seconds"] = rows
    record.save()
    return curves


def show_seconds(plan: Plan, rows: Sequence[dict[str, Any]]) -> None:
    delay = f"{1000 * plan.delay:g} ms of delay" if plan.delay else "no delay"
    print(f"\nseconds to train on {plan.tokens:,} tokens ({delay}); ~ worked out from fewer steps")
    print(f"{'':26}{'Mbit/s':>8}{'measured':>11}{'compute':>9}{'model':>9}{'ratio':>8}{'exposed':>9}{'DDP takes':>11}")
    for row in rows:
        seconds = row["measured"] or row["extrapolated"]
        ddp = [one for one in rows if one["way"] == "ddp" and one["rate"] == row["rate"]]
        times = "".join(f"{(one['measured'] or one['extrapolated']) / seconds:.1f}x" for one in ddp)
        mark = " " if row["measured"] else "~"
        steps = "" if row["measured"] else f"  {row['steps']} steps taken"
        print(
            f"{WAYS[row['way']].name:26}{row['rate'] / 1e6:8g}{mark:>2}{seconds:9.1f}{row['compute']:9.1f}"
            f"{row['model']:9.1f}{row['ratio']:8.2f}{row['model_exposed'] / row['model']:9.0%}{times:>11}{steps}"
        )
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print(f"measured and model differ by {worst:.1%} at most: {within(worst, 0.2)}", flush=True)
