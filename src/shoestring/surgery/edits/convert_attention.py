"""Attention of a trained model by another pattern, with all weights that it had."""

from typing import Annotated, Any

import torch

from shoestring.config import Choice, Pick
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import method

MIXER = Pick("model", "token mixer", default="infllm_v2")
DEFAULT = MIXER.choice()


@method(
    "surgery",
    kind="edit",
    name="convert_attention",
    claim="none of its own: the token mixer that is put in place has its source's",
    cost="none to apply; how much training it takes depends on the mixer",
)
class ConvertedAttention:
    """Some layers attend by another token mixer, which takes over queries, keys, values and output of the attention there.

    For mixers that have all weights of `attention`: `infllm_v2`, `mosa`, `s2_attention` and `fixed_point`. What they have beside
    is drawn as in a new model. Options left at their defaults are those of the attention that was there, where both have them.

    at: the layers, as a pattern of [model] names them: '1:', or '::2'. token_mixer: what they get.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, at: str = ":", token_mixer: Annotated[Choice, MIXER] = DEFAULT) -> None:
        self.at, self.token_mixer = at, token_mixer

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The seed that new weights are drawn from. Raises: UsageError for a model that is not native, or has no such layer."""
        self._anatomy(model).numbers(self.at)
        return Decision({"seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with its new mixers. Raises: UsageError where a weight or an option of a layer has no place in them."""
        usual = self.token_mixer.card.options().model_fields
        given = {key: value for key, value in self.token_mixer.options.items() if value != usual[key].default}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(decision.values["seed"]))
            self._anatomy(model).convert_token_mixers(self.at, self.token_mixer.name, **given)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        return f"convert_attention: layers {self.at} attend by {self.token_mixer.name}, with the weights that they had"

    @staticmethod
    def _anatomy(model: LanguageModule) -> Any:
        anatomy = model.anatomy()
        if not hasattr(anatomy, "convert_token_mixers"):
            raise UsageError(
                "convert_attention is for native models, and those with a bridge: the attention of a wrapped one is its makers' own"
            )
        return anatomy
