"""Part 1 of slow_link.py: bytes that a worker sends a token, and the highest rate at which it sends."""

from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from link_arms import WAYS, Arm, Bytes
from link_model import ACKNOWLEDGEMENT, largest_share, peak_rate
from link_record import Plan, Record
from link_runs import run_command
from links import Links

AIMS = {("muloco_2bit", 30): 400, ("muloco_2bit", 100): 1000}
STREAMING = "streaming_muloco_2bit"


@dataclass
class Row:
    """Bytes that a worker sends a token. kernel: at its interface. carried: of these, without the packets' headers. own: as the
    program counted them; None for DDP, which does not. formula: from the shapes. ratio: of DDP's, by the kernel's counts."""

    name: str
    kernel: float
    carried: float
    own: float | None
    formula: float
    aim: int | None
    ratio: float | None = None

    @classmethod
    def of(cls, plan: Plan, found: dict[str, Any], name: str = "") -> "Row":
        way, tokens = WAYS[found["way"]], found["tokens"]
        bytes_sent, packets = found["kernel"]["sent"], found["kernel"]["packets_sent"]
        return cls(
            name=name or way.name + ("" if way.ddp else f", H = {found['every']}"),
            kernel=bytes_sent / tokens,
            carried=(bytes_sent - ACKNOWLEDGEMENT * packets) / tokens,
            own=None if way.ddp else found["own_sent"] / tokens,
            formula=Bytes(plan.shape, way, found["every"]).sent(found["steps"]) / tokens,
            aim=AIMS.get((found["way"], found["every"])),
        )

    @property
    def agreement(self) -> float:
        """The kernel's count over the program's, for DDP over the formula's."""
        return self.kernel / (self.own or self.formula)

    def line(self) -> str:
        own = "" if self.own is None else f"{self.own:.3f}"
        counts = f"{self.kernel:12.3f}{self.carried:12.3f}{own:>12}{self.formula:12.3f}{self.agreement - 1:+11.1%}"
        ratio = f"{self.ratio:9,.0f}x" if self.ratio else ""
        aim = f"  aim {self.aim:,}x: {'reached' if (self.ratio or 0) >= self.aim else 'MISSED'}" if self.aim else ""
        return f"{self.name:36}{counts}{ratio}{aim}"


def measure_bytes(net: Links, plan: Plan, record: Record) -> None:
    """Part 1."""
    shape, seen, known = plan.shape, {}, record.content["arms"]
    print("bytes", flush=True)
    ddp = record.arm(net, shape, Arm("ddp", plan.every, plan.byte_steps, plan.byte_steps))
    rows = [Row.of(plan, ddp)]
    for way, every, rounds in plan.rounds:
        seen[way, every] = record.arm(net, shape, Arm(way, every, rounds * every, rounds * every))
        rows.append(Row.of(plan, seen[way, every]))
    if plan.command:
        if "shoestring train" not in known:
            known["shoestring train"] = run_command(net, shape, plan.every, 2 * plan.every)
            record.save()
        rows.append(Row.of(plan, known["shoestring train"], f"`shoestring train`, 2 bits, H = {plan.every}"))
    for row in rows[1:]:
        row.ratio = rows[0].kernel / row.kernel
    print(f"\nbytes that a worker sends a token, {shape.step_tokens} tokens a step of all workers, unshaped links")
    print(f"{'':36}{'kernel':>12}{'no headers':>12}{'own count':>12}{'formula':>12}{'kernel is':>11}{'DDP is':>10}")
    for row in rows:
        print(row.line())
    print(
        "kernel is: against the program's own count, for DDP against the formula; streaming ends with its fragments once more"
    )
    for row in rows:
        print(f"{row.name}: the counts differ by {abs(row.agreement - 1):.1%}, {within(abs(row.agreement - 1), 0.05)}")
    record.content["bytes"] = [asdict(row) | {"agreement": row.agreement} for row in rows]
    record.content["peaks"] = peaks(plan, seen["muloco_2bit", plan.every], seen[STREAMING, plan.every])
    record.save()


def within(found: float, aim: float) -> str:
    return f"{'within' if found <= aim else 'NOT within'} {aim:.0%}"


def peaks(plan: Plan, whole: dict[str, Any], streaming: dict[str, Any]) -> dict[str, Any]:
    """The highest rate of streaming beside that of the whole model at once, both of the same H."""
    outer = plan.shape.outer(WAYS[STREAMING], plan.every)
    fragments, largest = len(outer.fragments), largest_share(outer.fragments)
    gap = plan.every / fragments * min(one["seconds"] / one["steps"] for one in (whole, streaming))
    found: dict[str, Any] = {"fragments": fragments, "largest_share": largest, "windows": []}
    print(f"\npeak rate of a worker: {fragments} fragments, one every {gap:.2f} s, against the whole model at once")
    for share in (0.25, 0.5, 0.75):
        window, rates = share * gap, []
        for one in (whole, streaming):
            times, *traces = zip(*(map(float, line.split()) for line in one["trace"]), strict=True)
            rates.append(mean(peak_rate(times, sent, window) for sent in traces))
        cut = rates[0] / rates[1] if rates[1] else 0.0
        found["windows"].append({"window": window, "whole": rates[0], "streaming": rates[1], "cut": cut})
        bits = [8e-6 * rate for rate in rates]
        print(f"  over {window:.2f} s: {bits[1]:.2f} Mbit/s against {bits[0]:.2f}, {cut:.2f} times less")
    print(f"  the largest fragment is 1 / {1 / largest:.2f} of the model: so much there is to gain", flush=True)
    return found
