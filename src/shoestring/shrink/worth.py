"""What a smaller model cost, and what a model of its size from scratch would be for the same."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoestring.budget.units import show, show_seconds
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.plan.law import Prediction
from shoestring.plan.laws.chinchilla import Chinchilla
from shoestring.plan.outlook import outlook
from shoestring.plan.runs_table import RunsTable

PUBLISHED = "besiroglu"
"""The fit of Chinchilla's law that is used where no runs on the text are known."""


@dataclass(frozen=True)
class Scratch:
    """A model of the same size, trained from scratch for as many operations.

    tokens: that these operations pay for. expected: its held-out loss; from a published law without an interval: its ends are
    the value. source: of the prediction, in words.
    """

    tokens: float
    expected: Prediction
    source: str

    def __str__(self) -> str:
        value, low, high = self.expected
        interval = f" ({low:.2f} to {high:.2f})" if low < high else ""
        return f"about {value:.2f}{interval} on {show('tokens', self.tokens)}, {self.source}"


def operations(summary: Mapping[str, Any]) -> int:
    """All operations that making took: training, teachers, calibration; held-out evaluation is no part of the model's price."""
    others = {name: counts.get("flops", 0) for name, counts in summary["accounts"].items()}
    return int(summary["flops"]) + sum(flops for name, flops in others.items() if name != "evaluation")


def from_scratch(model: LanguageModule, flops: float, table: RunsTable | None) -> Scratch:
    """What training a model of this size for these operations is predicted to give.

    table: earlier runs on the same text, with which a law is fitted; None, or too few of them: a published law of other text.
    """
    context = model.about.context
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    each = model.cost(Shape(1, context, backward=True)).flops / context
    for parameter, was in zip(model.parameters(), frozen, strict=True):
        parameter.requires_grad_(was)
    model.changed()
    row = {"parameters": float(sum(p.numel() for p in model.parameters())), "tokens": flops / each}
    knows_nothing = math.log(model.about.vocabulary)
    if table is not None:
        try:
            found = outlook(table, [row])
            value, low, high = (min(each, knows_nothing) for each in found.expected[0])
            said = f"by {found.law.law.formula} fitted to {len(table)} runs"
            return Scratch(row["tokens"], Prediction(value, low, high), said)
        except UsageError:
            pass  # too few: what is published says at least how large it is
    law = Chinchilla()
    value = law.value(law.published[PUBLISHED], row)
    if value >= knows_nothing:
        said = "as one that has learnt nothing: a published law of other text says no less for so few operations"
        return Scratch(row["tokens"], Prediction(*[knows_nothing] * 3), said)
    said = "by a published law of other text (arXiv:2404.10102), so a rough guide; plan --learn RUNS gives one of this text"
    return Scratch(row["tokens"], Prediction(value, value, value), said)


def price(summary: Mapping[str, Any]) -> str:
    """What making took, in words."""
    teacher = summary["accounts"].get("teacher", {}).get("flops", 0)
    part = f", {teacher / max(operations(summary), 1):.0%} of them the teacher's" if teacher else ""
    return f"{show_seconds(summary['seconds'])} and {show('flops', operations(summary))}{part}"
