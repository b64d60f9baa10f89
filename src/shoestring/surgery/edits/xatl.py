"""Cross-architecture transfer: other token mixers in some layers of a model that exists."""

from typing import Annotated, Any

import torch

from shoestring.config import Choice, Pick
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import method

MIXER = Pick("model", "token mixer", default="gated_delta")
DEFAULT = MIXER.choice()


@method(
    "surgery",
    kind="edit",
    name="xatl",
    paper="Cross-Architecture Transfer Learning for Linear-Cost Inference Transformers, arXiv:2404.02684",
    claim="up to 2.5 times less training time to the same loss than from scratch, and up to 2.6 % stronger at equal compute",
    cost="none to apply; the new mixers are to be trained",
)
class CrossArchitectureTransfer:
    """Some layers get new token mixers, drawn afresh; all other weights are those of the model.

    Sehyun Choi, 2024, arXiv:2404.02684.

    What the new mixer writes to the stream is zero at first, as in a new model, so that such a layer is its channel mixer alone
    until it has learnt. Heads and their width are the model's; a mixer with keys of each head has as many key heads.

    Different from the paper: no weights of attention are moved over, and nothing is frozen at first.

    at: the layers, as a pattern of [model] names them: '::2', or '0:8, -1'. token_mixer: what they get.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, at: str = "::2", token_mixer: Annotated[Choice, MIXER] = DEFAULT) -> None:
        self.at, self.token_mixer = at, token_mixer

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The seed that the new weights are drawn from. Raises: UsageError for a model that is not native, or has no such layer."""
        self._swap(model)
        return Decision({"seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with its new mixers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(decision.values["seed"]))
            self._swap(model)(self.at, self.token_mixer)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are plain."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        return f"xatl: layers {self.at} have the token mixer {self.token_mixer.name}, drawn afresh"

    @staticmethod
    def _swap(model: LanguageModule) -> Any:
        swap = getattr(model.anatomy(), "swap_token_mixers", None)
        if swap is None:
            raise UsageError("xatl is for native models: the layers of a wrapped one are its makers' own")
        return swap
