"""An edit that trains a model's matrices for a number format: what such edits share."""

from collections.abc import Sequence
from dataclasses import asdict

from shoestring.config import Choice, Pick
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.lowbit.activations import Activations
from shoestring.lowbit.convert import lower, lowered, lowered_layers, unpack
from shoestring.lowbit.format import Format

ACTIVE = Pick("schedule", "quantise", default="always")
"""How an edit's option `active` is read: a rule for the share of the budget from which on weights are quantised."""


class FormatTraining:
    """Weights trained for a number format: every linear layer of the blocks computes with its quantised weight, and the gradient
    passes straight through to the latent one.

    format: the number format.
    activations: what the inputs of those layers are rounded to.
    keep: patterns of the names of layers that stay in full precision, beside embedding, output head and norms.
    active: when the weights begin to be quantised, as a share of the budget; outside a step of training they always are.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, format: Format, activations: Activations, keep: Sequence[str], active: Choice) -> None:
        self.format, self.activations, self.keep, self.active = format, activations, tuple(keep), active

    @property
    def bits(self) -> float:
        """Of a quantised weight."""
        return self.format.bits

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Nothing: the options say it all."""
        return Decision()

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with its layers lowered. Raises: UsageError where nothing is left to lower, or a matrix does not divide."""
        lower(model, self.format, self.activations, self.keep)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Plain layers with the quantised numbers; a rounding of activations is left out."""
        unpack(model)
        return model

    def switch(self, model: LanguageModule, active: bool) -> None:
        """Compute with quantised weights, or with the latent ones."""
        for layer in lowered_layers(model):
            layer.active = active

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        rounded = "" if self.activations == "none" else f", activations {self.activations}"
        options = ", ".join(f"{key} = {value}" for key, value in asdict(self.format).items())
        name = type(self.format).__name__.lower()
        return f"{name} weights ({options}){rounded}: {lowered(model).describe()}"
