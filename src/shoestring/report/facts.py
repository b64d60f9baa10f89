"""What a run came to, in figures: its losses, what it spent against what it had, and how it ended."""

import math
from dataclasses import dataclass

from shoestring.report.quantities import NONE, amount, percent, plain, power, scaled, time
from shoestring.report.run_files import Run

RESOURCES = {"seconds": "Time", "flops": "Computation", "tokens": "Training tokens", "bytes": "Sent"}


@dataclass(frozen=True)
class Figure:
    """One headline figure. share: how much of the budget it is (1.0 = all), where it has a limit."""

    label: str
    value: str
    unit: str = ""
    note: str = ""
    share: float | None = None


def spent(run: Run) -> dict[str, float | None]:
    """What the run has spent of each resource: from the summary, else the ledger, else the last line of the metrics."""
    totals = run.totals
    ledger = {"seconds": totals.wall_clock, "flops": totals.flops, "tokens": totals.tokens, "bytes": totals.sent}
    last = run.train[-1] if run.train else {}
    return {
        resource: run.ended.get(resource) if resource in run.ended else recorded or last.get(resource)
        for resource, recorded in ledger.items()
    }


def binding(run: Run) -> str | None:
    """The resource that ran out, or of which the largest share is spent."""
    named = run.ended.get("binding")
    if named in run.limits:
        return str(named)
    gone = spent(run)
    return max(run.limits, key=lambda resource: (gone.get(resource) or 0.0) / run.limits[resource], default=None)


def overshoot(run: Run) -> float | None:
    """What a finished run spent beyond its binding limit, as a share of that limit; negative if it spent less."""
    resource = binding(run) if state(run)[0] == "finished" else None
    gone = spent(run).get(resource) if resource else None
    return None if resource is None or gone is None else gone / run.limits[resource] - 1


def signed(share: float | None) -> str:
    """'+0.2 %', '−0.1 %'."""
    return percent(share, 2) if share is None or share < 0 else f"+{percent(share, 2)}"


def heldout(run: Run) -> tuple[float | None, float | None]:
    """(held-out loss in nats per token, bits per byte): the final ones, or the latest of a run still going on."""
    last = run.heldout[-1] if run.heldout else {}
    return run.ended.get("heldout_loss", last.get("loss")), run.ended.get("bits_per_byte", last.get("bits_per_byte"))


def speed(run: Run) -> float | None:
    """Tokens trained on for each second of the wall clock, evaluation and all the rest included."""
    gone = spent(run)
    return gone["tokens"] / gone["seconds"] if gone["tokens"] and gone["seconds"] else None


def state(run: Run) -> tuple[str, str]:
    """(how the run stands, in a word; in a sentence)."""
    if run.summary is None:
        return "not finished", "This run has not finished: it is going on, or was killed. The figures are its latest."
    stopped = str(run.summary.get("stopped", "finished"))
    if stopped == "finished":
        limits = " or ".join(amount(resource, limit) for resource, limit in run.limits.items())
        return stopped, f"Trained until its budget of {limits} was spent." if limits else "Trained to the end."
    if stopped == "interrupted":
        return stopped, "It was interrupted before its budget was spent."
    reason = run.summary.get("reason")
    return stopped, f"It {stopped}: {reason}." if reason else f"It {stopped}."


def _perplexity(loss: float | None) -> str:
    if loss is None or not math.isfinite(loss) or loss > 50:
        return ""
    perplexity = math.exp(loss)
    return f"a perplexity of {scaled(perplexity) if perplexity >= 1000 else f'{perplexity:.3g}'} a token"


def headline(run: Run) -> list[Figure]:
    """The figures a report opens with."""
    loss, bits = heldout(run)
    gone = spent(run)
    targets = run.heldout[-1].get("targets") if run.heldout else None
    measured = f"over {scaled(targets)} tokens held out" if targets else ""
    parameters = run.ended.get("parameters")
    ratio = f"{gone['tokens'] / parameters:.3g} training tokens a parameter" if gone["tokens"] and parameters else ""
    figures = [
        Figure("Held-out loss", plain(loss), "nats per token", measured),
        Figure("Bits per byte", plain(bits), "of held-out text", _perplexity(loss)),
        Figure("Parameters", scaled(parameters), "", ratio),
        Figure("Speed", scaled(speed(run)), "tokens per second", "over the whole time, evaluation included"),
    ]
    for name, label in RESOURCES.items():
        value, limit = gone[name], run.limits.get(name)
        if name == "bytes" and not limit:
            continue
        share = value / limit if value is not None and limit else None
        note = f"the budget of {amount(name, limit)}" if limit else "no limit set"
        note = note if share is None else f"{percent(share)} of {note}"
        figures.append(Figure(label, scaled(value) if name == "tokens" else amount(name, value), "", note, share))
    over, resource = overshoot(run), binding(run)
    if over is not None and resource:
        note = f"{'past' if over > 0 else 'within'} the budget of {amount(resource, run.limits[resource])}"
        figures.append(Figure("Overshoot", signed(over), "", note))
    return figures


def traffic(run: Run) -> list[tuple[str, str]]:
    """(what, how much) of tokens, bytes and memory, from the ledger; what was discarded or moved only where any was."""
    totals = run.totals
    seen = totals.tokens + totals.discarded
    lost = f" ({percent(totals.discarded / seen)})" if seen and totals.discarded else ""
    rows = [("Tokens seen", scaled(seen)), ("of which discarded", f"{scaled(totals.discarded)}{lost}")]
    if totals.flops_discarded:
        rows.append(("FLOPs discarded", power(totals.flops_discarded)))
    rows.append(("Peak memory", scaled(totals.peak_memory, "B") if totals.peak_memory else NONE))
    if totals.sent or totals.received:
        rows += [("Bytes sent", scaled(totals.sent, "B")), ("Bytes received", scaled(totals.received, "B"))]
    if run.resumed:
        rows.append(("Resumed", f"{run.resumed} time" + "s" * (run.resumed > 1)))
    return rows


def data(run: Run) -> list[tuple[str, str]]:
    """(what, how much) of what was read: held-out loss of each source, and what curating kept and dropped of each corpus."""
    last = run.heldout[-1] if run.heldout else {}
    domains = last.get("domains")
    rows = [
        (f"Held-out loss on {name}", plain(loss))
        for name, loss in (domains.items() if isinstance(domains, dict) else ())
        if isinstance(loss, int | float)
    ]
    for name, card in run.cards.items():
        if not isinstance(card, dict):
            continue
        rows.append((f"{name}: curated from", str(card.get("corpus", NONE))))
        rows.append((f"{name}: text in", _amount(card)))
        rows.append((f"{name}: text kept", _amount(card.get("kept"))))
        curators = card.get("curators")
        for curator in curators if isinstance(curators, list) else ():
            dropped = curator.get("dropped") if isinstance(curator, dict) else None
            if isinstance(dropped, dict):
                rows += [(f"{name}: dropped, {why}", _amount(much)) for why, much in dropped.items()]
        if isinstance(card.get("seconds"), int | float):
            rows.append((f"{name}: curating took", time(card["seconds"])))
    return rows


def _amount(found: object) -> str:
    """Documents and bytes, as a data card has them."""
    counts = [found.get(key) for key in ("documents", "bytes")] if isinstance(found, dict) else []
    if not all(isinstance(count, int) for count in counts) or not counts:
        return NONE
    return f"{scaled(counts[0])} documents, {scaled(counts[1], 'B')}"


def row(run: Run) -> list[tuple[str, str]]:
    """(column, value) of the table that sets runs side by side; the held-out loss comes first."""
    loss, bits = heldout(run)
    gone = spent(run)
    last = run.train[-1] if run.train else {}
    return [
        ("Held-out loss, nats per token", plain(loss)),
        ("Bits per byte", plain(bits)),
        ("Parameters", scaled(run.ended.get("parameters"))),
        ("Steps", scaled(run.ended.get("steps", last.get("step")))),
        ("Tokens", scaled(gone["tokens"])),
        ("Time", time(gone["seconds"])),
        ("FLOPs", power(gone["flops"])),
        ("Tokens per second", scaled(speed(run))),
        ("Overshoot", signed(overshoot(run))),
        ("Peak memory", scaled(run.totals.peak_memory, "B") if run.totals.peak_memory else NONE),
        ("Ended", state(run)[0]),
    ]
