"""Cutting one of the nested models out of a model that was trained to hold them."""

from collections.abc import Mapping

from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import Fraction, method
from shoestring.surgery.pruning import Kept, Pruning


@method(
    "surgery",
    kind="edit",
    name="nested",
    paper="SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for Training "
    "Many-in-One Neural Networks, arXiv:2309.00255",
    claim="a model of any size is there without a search or more training",
    cost="none",
)
class Nested(Pruning):
    """Leave the first layers, and of each the first hidden features, as the objective `sortednet` trains them.

    depth: share of the layers that stays.
    hidden: share of the hidden features.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, depth: Fraction = 1.0, hidden: Fraction = 1.0) -> None:
        if depth <= 0 or hidden <= 0:
            raise ValueError("nested: depth and hidden are shares above 0")
        self.depth, self.hidden = depth, hidden

    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """As `Pruning.choose`."""
        kept: Kept = []
        for axis in model.anatomy().axes("hidden") if self.hidden < 1 else ():
            indices = list(range(max(1, round(self.hidden * axis.size))))
            kept.append({"kind": "hidden", "layer": axis.layer, "indices": indices})
        return kept, {}, NOTHING

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """What stays."""
        made = super().decide(model, evidence)
        layers = max(1, round(self.depth * len(model.anatomy().layers)))
        return Decision({**made.values, "layers": layers}, made.tensors, made.spent)

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The smaller model."""
        made = super().apply(model, decision)
        if decision.values["layers"] < len(made.anatomy().layers):
            made.anatomy().keep_layers(range(decision.values["layers"]))
        return made

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return f"nested: the first {decision.values['layers']} layers stay, {self.hidden:.0%} of hidden: {numbers:,} parameters"
