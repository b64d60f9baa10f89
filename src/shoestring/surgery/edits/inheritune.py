"""A small model of the first layers of a large one."""

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Whole, method


@method(
    "surgery",
    kind="edit",
    name="inheritune",
    paper="Pre-training Small Base LMs with Fewer Tokens, arXiv:2404.08634",
    claim="1.5 B parameters inherited of 3 B and trained on 1 B tokens compare well with base models trained on far more",
    cost="none",
)
class Inheritune:
    """Leave the embeddings, the first layers and the head; training does the rest.

    The paper begins with half of the layers, and where that does not suffice adds `more` of the large model's next ones and trains
    on: give more there. Layers keep the place they had; the last of the large model goes.

    layers: how many of the first are inherited.
    more: of the next ones, that come beside them.
    """

    needs: frozenset[str] = frozenset()
    divides = True

    def __init__(self, *, layers: Count, more: Whole = 0) -> None:
        self.layers, self.more = layers, more

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """How many layers stay. Raises: UsageError where the model has not more."""
        total, stay = len(model.anatomy().layers), self.layers + self.more
        if stay > total:
            raise UsageError(f"inheritune: {stay} layers cannot be inherited of a model that has {total}")
        return Decision({"stay": stay})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model of the first layers."""
        model.anatomy().keep_layers(range(decision.values["stay"]))
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return f"inheritune: the first {decision.values['stay']} layers stay: {numbers:,} parameters"
