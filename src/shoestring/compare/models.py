"""Models that exist, compared as they are used: as many bytes, or as long a token, and the same bytes of text.

What making a model took and what using it takes are two ledgers. The verdict is on use; the price of making stands beside it and is
not added, as how often a model will be used is not known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from shoestring.base.likelihood import Units, summed, window
from shoestring.base.open_model import open_model
from shoestring.base.opened import Opened
from shoestring.base.text import Text
from shoestring.budget.charge import Charge
from shoestring.budget.units import show, show_seconds
from shoestring.compare.outcome import ArmOutcome, Terms
from shoestring.compare.weighing import Weighed, weigh
from shoestring.contract.cost import bytes_of
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.json_files import read_json
from shoestring.shrink.target import seconds_per_token
from shoestring.shrink.worth import operations

Hold = Literal["bytes", "seconds"]

PIECES = 32
"""Pieces of as many bytes each that the text is cut into: the pairs of the comparison."""

JUDGED = "bits_per_byte"


@dataclass(frozen=True)
class Used:
    """A model in use.

    outcome: bits a byte of each piece of the text, bytes of its weights, seconds a token. evaluated: what measuring took.
    made: seconds and FLOPs that the last run which made it took, teacher and calibration included; None where no run is known.
    """

    outcome: ArmOutcome
    evaluated: Charge
    made: Mapping[str, float] | None

    def __str__(self) -> str:
        spent = self.outcome.spent
        made = "making it is not known"
        if self.made is not None:
            made = f"made for {show_seconds(self.made['seconds'])} and {show('flops', self.made['flops'])}"
        return (
            f"{self.outcome.arm}: {self.outcome.figures[JUDGED]:.4f} bits a byte; in use {show('bytes', spent['bytes'])} and "
            f"{1e3 * spent['seconds']:.2f} ms a token; {made}"
        )


def used(place: str, text: Text, *, opened: Opened | None = None) -> Used:
    """A model measured on a text. opened: it, where it is open already.

    Raises: UsageError where it has no tokenizer, or is no single model.
    """
    opened = opened or open_model(place)
    model, tokenizer = opened.model, opened.tokenizer
    if tokenizer is None:
        raise UsageError(f"{place} has no tokenizer: text cannot be made its tokens")
    if not isinstance(model, LanguageModule):
        raise UsageError(
            f"{place} is {opened.about.kind}, which is no single model: its bytes and seconds are not one figure"
        )
    units = Units("stretches", np.full(PIECES, text.bytes / PIECES))
    nats, _, _, evaluated = summed(model, tokenizer, text, units, window(model, None))
    bits = nats / np.log(2) / units.sizes
    with torch.inference_mode():
        seconds = seconds_per_token(model)
    spent = {"bytes": float(bytes_of(model)), "seconds": seconds}
    outcome = ArmOutcome(place, 0, {JUDGED: float(bits.mean())}, spent, {JUDGED: tuple(bits.tolist())})
    return Used(outcome, evaluated, _made(place))


def judge_models(found: Sequence[Used], hold: Hold, tolerance: float, confidence: float = 0.95) -> list[Weighed]:
    """Each model against the first: on the same bytes of text, at as many bytes of weights or as long a token.

    tolerance: by how much the held figure may differ, as a share. Raises: UsageError for fewer than two models.
    """
    if len({each.outcome.arm for each in found}) < 2:
        raise UsageError("a comparison needs two models or more, of different places: give the base first")
    first, *others = [each.outcome for each in found]
    terms = Terms(JUDGED, hold={hold: first.spent[hold]}, tolerance=tolerance)
    return [weigh([first, other], terms, first.arm, other.arm, confidence) for other in others]


def said(one: Weighed, hold: Hold) -> str:
    """A comparison in a sentence."""
    name = f"{one.candidate} against {one.base}"
    found = one.found
    if one.verdict == "not comparable":
        return f"{name}: not comparable at the same {hold}. {one.flags[-1]}" if one.flags else f"{name}: not comparable"
    if found.difference is None:
        return f"{name}: nothing was measured"
    words = f"{found.difference:+.4f} bits a byte"
    if found.interval is not None:
        words += f" ({found.interval[0]:+.4f} to {found.interval[1]:+.4f}, over {one.items} pieces of text)"
    return f"{name}: {one.verdict} at the same {hold}; {words}"


def to_json(found: Sequence[Used], weighed: Sequence[Weighed], hold: Hold) -> dict[str, Any]:
    """All that was measured and found."""
    models = [
        {
            "place": each.outcome.arm,
            "using": {**each.outcome.spent, **each.outcome.figures},
            "making": each.made,
            "evaluation": each.evaluated.as_dict(),
        }
        for each in found
    ]
    comparisons = [
        {
            "candidate": one.candidate,
            "base": one.base,
            "verdict": one.verdict,
            "difference": one.found.difference,
            "interval": one.found.interval,
            "pieces": one.items,
            "flags": list(one.flags),
            "sentence": said(one, hold),
        }
        for one in weighed
    ]
    return {"hold": hold, "models": models, "comparisons": comparisons}


def _made(place: str) -> dict[str, float] | None:
    """What the run at a place took."""
    path = Path(place).expanduser() / "summary.json"
    if not path.is_file():
        return None
    summary = read_json(path, dict, "the summary of a run")
    if "seconds" not in summary or "flops" not in summary or not isinstance(summary.get("accounts", {}), dict):
        return None
    return {"seconds": float(summary["seconds"]), "flops": float(operations({"accounts": {}, **summary}))}
