"""Part 1 of slow_link.py: bytes that a worker sends a token, and the highest rate at which it sends."""

from statistics import mean
from typing import Any

from link_arms import WAYS, Arm, Bytes, Shape, run_command
from link_model import largest_share, peak_rate
from link_record import Plan, Record
from links import Links

AIMS = {("muloco_2bit", 30): 400, ("muloco_2bit", 100): 1000}


def measure_bytes(net: Links, plan: Plan, record: Record) -> None:
    """Part 1."""
    shape = plan.shape
    print("bytes", flush=True)
    ddp = record.arm(net, shape, Arm("ddp", plan.every, plan.byte_steps, plan.byte_steps))
    rows, seen = [bytes_row(shape, ddp, None)], {}
    for way, every, rounds in plan.rounds:
        found = record.arm(net, shape, Arm(way, every, rounds * every, rounds * every, traced=True))
        rows.append(bytes_row(shape, found, rows[0]))
        seen[way, every] = found
    if "shoestring train" not in record.content["arms"]:
        record.content["arms"]["shoestring train"] = run_command(net, shape, plan.every, 2 * plan.every)
        record.save()
    command = record.content["arms"]["shoestring train"]
    rows.append(
        {
            "name": f"`shoestring train`, 2 bits, H = {command['every']}",
            "kernel": command["kernel_sent"] / command["tokens"],
            "own": command["own_sent"] / command["tokens"],
            "formula": Bytes(shape, WAYS["muloco_2bit"], command["every"]).sent(command["steps"]) / command["tokens"],
        }
    )
    rows[-1] |= {"ratio": rows[0]["kernel"] / rows[-1]["kernel"], "aim": AIMS.get(("muloco_2bit", command["every"]))}
    print(f"\nbytes that a worker sends a token ({shape.step_tokens} tokens a step), unshaped links")
    print(f"{'':36}{'kernel':>10}{'own':>10}{'formula':>10}{'kernel/own':>12}{'DDP is':>10}")
    for row in rows:
        against = row["own"] or row["formula"]
        own = f"{row['own']:10.3f}" if row["own"] else f"{'':>10}"
        times = f"{row['ratio']:9.0f}x" if row["ratio"] else ""
        aim = f"  aim {row['aim']}x: {'reached' if row['ratio'] >= row['aim'] else 'MISSED'}" if row["aim"] else ""
        row["agreement"] = row["kernel"] / against
        print(
            f"{row['name']:36}{row['kernel']:10.3f}{own}{row['formula']:10.3f}{row['agreement']:12.4f}{times}{aim}",
            flush=True,
        )
    worst = max(abs(row["agreement"] - 1) for row in rows)
    print(
        f"kernel and own count (DDP: formula) differ by {worst:.1%} at most: {'within' if worst <= 0.05 else 'NOT within'} 5 %"
    )
    record.content["bytes"] = rows
    pair = [seen[way, plan.every] for way in ("muloco_2bit", "streaming_muloco_2bit")]
    record.content["peaks"] = peaks(plan, *pair)
    record.save()


def bytes_row(shape: Shape, found: dict[str, Any], ddp: dict[str, Any] | None) -> dict[str, Any]:
    way, tokens = WAYS[found["way"]], found["tokens"]
    formula = Bytes(shape, way, found["every"]).sent(found["steps"])
    row = {
        "name": way.name + ("" if way.ddp else f", H = {found['every']}"),
        "kernel": found["kernel"]["sent"] / tokens,
        "own": None if way.ddp else found["own_sent"] / tokens,
        "formula": formula / tokens,
        "ratio": None,
        "aim": AIMS.get((found["way"], found["every"])),
    }
    if ddp is not None:
        row["ratio"] = ddp["kernel"] / row["kernel"]
    return row


def peaks(plan: Plan, whole: dict[str, Any], streaming: dict[str, Any]) -> dict[str, Any]:
    """The highest rate of streaming beside that of the whole model at once, both of the same H."""
    outer = plan.shape.outer(WAYS["streaming_muloco_2bit"], plan.every)
    fragments = len(outer.fragments)
    gap = plan.every / fragments * min(one["seconds"] / one["steps"] for one in (whole, streaming))
    found: dict[str, Any] = {"fragments": fragments, "largest_share": largest_share(outer.fragments), "windows": []}
    print(
        f"\npeak rate of a worker, {fragments} fragments against the whole model at once (a fragment every {gap:.2f} s)"
    )
    for share in (0.25, 0.5, 0.75):
        window = share * gap
        rates = []
        for one in (whole, streaming):
            times, *traces = zip(*(map(float, line.split()) for line in one["trace"]), strict=True)
            rates.append(mean(peak_rate(times, sent, window) for sent in traces))
        cut = rates[0] / rates[1] if rates[1] else 0.0
        found["windows"].append({"window": window, "whole": rates[0], "streaming": rates[1], "cut": cut})
        print(
            f"  over {window:.2f} s: {8e-6 * rates[0]:.2f} Mbit/s and {8e-6 * rates[1]:.2f} Mbit/s, {cut:.2f} times less",
            flush=True,
        )
    print(f"  the largest fragment has 1 / {1 / found['largest_share']:.2f} of the parameters")
    return found
