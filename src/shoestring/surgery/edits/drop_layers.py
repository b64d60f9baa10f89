"""Dropping whole layers of a model."""

import itertools
from typing import Any, Literal

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.anatomy import Anatomy
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Whole, method

By = Literal["influence", "last", "spread"]


@method(
    "surgery",
    kind="edit",
    name="drop_layers",
    paper="ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, arXiv:2403.03853",
    claim="layers of low Block Influence can be removed with little loss; depth is more redundant than width",
    cost="one forward pass over the calibration text where layers are chosen by influence; none else",
)
class DropLayers:
    """Leave out some layers; the others compute as they did.

    With X_i the hidden states that enter layer i, its Block Influence is

        BI_i = 1 - E_t [ x_{i,t} . x_{i+1,t} / (|x_{i,t}| |x_{i+1,t}|) ]

    over the tokens t of the calibration text; the layers of the least influence go. All influences are of the whole model, as in
    the paper, and are not measured again after each layer that goes.

    count: how many layers go.
    layers: the numbers of those that go, in place of `count`.
    by: how they are chosen: 'influence'; 'last', the last ones but the very last; 'spread', evenly between the first and the last.
    """

    divides = True

    def __init__(self, *, count: Whole = 0, layers: tuple[Whole, ...] = (), by: By = "spread") -> None:
        if bool(count) == bool(layers):
            raise ValueError("drop_layers: give count, or the numbers of the layers, and not both")
        if len(set(layers)) != len(layers):
            raise ValueError(f"drop_layers: layers names one twice: {list(layers)}")
        self.count, self.layers, self.by = count, layers, by
        self.needs = frozenset({"text"} if by == "influence" and count else ())

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The numbers of the layers that stay. Raises: UsageError where so many cannot go, and without text to look at."""
        anatomy = model.anatomy()
        total = len(anatomy.layers)
        if len(self.layers) >= total or self.count >= total or any(number >= total for number in self.layers):
            asked = f"layers {list(self.layers)}" if self.layers else f"{self.count} layers"
            raise UsageError(f"{asked} cannot be dropped of a model that has {total}, numbered from 0: one must stay")
        values: dict[str, Any] = {}
        spent = NOTHING
        if self.layers:
            gone = set(self.layers)
        elif self.by == "last":
            # the very last one writes what the head reads
            gone = (
                set(range(max(total - 1 - self.count, 0), total - 1))
                if self.count < total - 1
                else set(range(self.count))
            )
        elif self.by == "spread":
            gone = _spread(total, self.count)
        else:
            found, spent = influences(model, anatomy, evidence)
            values["influence"] = [round(value, 6) for value in found]
            gone = set(sorted(range(total), key=lambda number: found[number])[: self.count])
        stay = [number for number in range(total) if number not in gone]
        return Decision({**values, "stay": stay}, spent=spent)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with the layers that stay."""
        model.anatomy().keep_layers(decision.values["stay"])
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        stay = decision.values["stay"]
        return f"drop_layers: {len(stay)} layers stay: {', '.join(map(str, stay))}"


def _spread(total: int, count: int) -> set[int]:
    """`count` numbers, evenly between the first layer and the last, which stay if they can."""
    inner = list(range(1, total - 1)) if count <= total - 2 else list(range(total - 1, 0, -1))
    step = len(inner) / count
    return {inner[int(step * (place + 0.5))] for place in range(count)}


@torch.no_grad()
def influences(model: LanguageModule, anatomy: Anatomy, evidence: Evidence) -> tuple[list[float], Charge]:
    """(the Block Influence of each layer, what measuring it took). Raises: UsageError without text."""
    if not evidence.text:
        raise UsageError("choosing layers by their influence looks at text: none was given")
    names = anatomy.layers
    sums, tokens, flops = [0.0] * len(names), 0, 0
    for batch in evidence.text:
        reading = model.read(batch.inputs, tap=(anatomy.embedding, *names))
        states: list[Tensor] = [reading.tapped[name].float() for name in (anatomy.embedding, *names)]
        for layer, (before, after) in enumerate(itertools.pairwise(states)):
            sums[layer] += float(torch.nn.functional.cosine_similarity(before, after, dim=-1).sum())
        tokens += batch.targets.numel()
        flops += reading.cost.flops
    return [1 - value / tokens for value in sums], Charge(flops=flops, read=tokens)
