"""A model that exists learns to read tokens that are not shown, and to see both ways."""

from typing import Any

import torch

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "surgery",
    kind="edit",
    name="hidden_tokens",
    paper="Scaling Diffusion Language Models via Adaptation from Autoregressive Models, arXiv:2410.17891",
    claim="diffusion models made of GPT-2 and LLaMA, trained on less than 200 billion tokens more, are competitive with those "
    "they were made of",
    cost="a vector, and training to go on with",
)
class WithHiddenTokens:
    """A vector to read where a token is not shown, and attention both ways: what `masked_diffusion` goes on training.

    Shansan Gong et al., 2024, arXiv:2410.17891.

    The vector is drawn, about as large as the model's embeddings are. All other weights stay as they are.

    Different from the paper: the mask of attention opens at once and not bit by bit, and a hidden token is predicted at its own
    place, where the paper predicts it at the place before.

    both_ways: whether each token sees all others; false: the model stays causal, as `masked_input` wants it.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, both_ways: bool = True) -> None:
        self.both_ways = both_ways

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The vector. Raises: UsageError for a model that is not native, or reads hidden tokens already."""
        self._hide(model)
        if model.about.hides:
            raise UsageError("hidden_tokens: this model reads hidden tokens already, so leave the edit out")
        rows: Any = model.get_submodule(model.anatomy().embedding).weight
        drawn = torch.randn(model.about.width, generator=torch.Generator().manual_seed(evidence.seed))
        scale = torch.ones(()) if rows.is_meta else rows.detach()[:4096].float().std().cpu()
        return Decision({}, {"vector": drawn * scale})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model that reads them."""
        like = next(model.parameters())
        self._hide(model)(decision.tensors["vector"].to(like.device, like.dtype), self.both_ways)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Raises: UsageError, as no plain model computes the same."""
        raise UsageError("no plain model reads hidden tokens: this one stays a folder")

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        """In a line."""
        return (
            f"hidden_tokens: a vector for tokens that are not shown{', attention both ways' if self.both_ways else ''}"
        )

    @staticmethod
    def _hide(model: LanguageModule) -> Any:
        hide = getattr(model.anatomy(), "hide_tokens", None)
        if hide is None:
            raise UsageError(
                "hidden_tokens is for native models and those with a bridge: others keep their makers' attention"
            )
        return hide
