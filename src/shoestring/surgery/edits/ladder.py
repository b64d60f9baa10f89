"""Some layers of a trained model joined as a ladder."""

from shoestring.contract.anatomy import SwapsResiduals
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "surgery",
    kind="edit",
    name="ladder",
    paper="Ladder-residual: parallelism-aware architecture for accelerating large model inference with communication overlapping, "
    "arXiv:2501.06589",
    claim="the upper half of Llama-3.1 8B so, retrained with 3B tokens, with minimal loss of accuracy",
    cost="none to apply; the model is to be trained on",
)
class LadderConversion:
    """Some layers of a model get the residual `ladder`, with the weights that they have.

    Muru Zhang et al., 2025, arXiv:2501.06589. Each part of these layers reads the stream without what the part before it said, so
    that the model is to be trained on. The paper converts the upper half of a model, as the lower layers miss more.

    at: the layers, as a pattern of [model] names them: '16:' is from the 17th on.
    """

    needs: frozenset[str] = frozenset()
    divides = True

    def __init__(self, *, at: str) -> None:
        self.at = at

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Nothing is to be decided. Raises: UsageError for a model that is not native."""
        _swapping(model)
        return Decision()

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model as a ladder. Raises: UsageError for layers that are not there, or are joined in another way."""
        _swapping(model).swap_residuals(self.at, "ladder")
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        return f"ladder: layers {self.at} are a ladder, to be trained on"


def _swapping(model: LanguageModule) -> SwapsResiduals:
    anatomy = model.anatomy()
    if not isinstance(anatomy, SwapsResiduals):
        raise UsageError("ladder is for native models: how a wrapped one adds its parts is its makers' own")
    return anatomy
