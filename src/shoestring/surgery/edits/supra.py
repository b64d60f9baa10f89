"""SUPRA: attention of a trained model as linear attention with decay, to be trained on."""

from shoestring.contract.anatomy import ConvertsAttention
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "surgery",
    kind="edit",
    name="supra",
    paper="Linearizing Large Language Models, arXiv:2405.06640",
    claim="with 5 % of the tokens of pre-training, 7B models are competitive on standard benchmarks with recurrent models trained "
    "from scratch; in-context learning and long contexts stay behind the original",
    cost="none to apply; the model is to be trained on, as it loses most of what it knew",
)
class SUPRA:
    """Some layers of a model become linear attention, with the projections of the attention that was there.

    Jean Mercat et al., 2024, arXiv:2405.06640. The token mixer `supra` has the formula. Queries, keys, values and output are the
    model's; the maps begin as the identity. A row's state is then of one size, however long the text.

    Different from the paper: with `at`, some layers may stay as they are.

    at: the layers, as a pattern of [model] names them; ':' is all.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, at: str = ":") -> None:
        self.at = at

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Nothing is to be decided. Raises: UsageError for a model that is not native, or layers without plain attention."""
        converting(model, "supra").mixers_from_attention(self.at, "supra", {})
        return Decision()

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with linear attention."""
        converting(model, "supra").convert_attention(self.at, "supra", {})
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        return f"supra: layers {self.at} have linear attention, to be trained on"


def converting(model: LanguageModule, name: str) -> ConvertsAttention:
    """The anatomy of a model whose attention can be replaced. Raises: UsageError, with the edit's name, for another."""
    anatomy = model.anatomy()
    if not isinstance(anatomy, ConvertsAttention):
        raise UsageError(f"{name} is for native models: the attention of a wrapped one is its makers' own")
    return anatomy
