"""Sparse upcycling: the feed-forward layers of a dense model become experts."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import nn

from shoestring.config import Choice, Pick
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import method
from shoestring.surgery.channel_swap import gated_hidden, native

ROUTER = Pick("model", "router", default="token_choice")
DEFAULT = ROUTER.choice()


@method(
    "surgery",
    kind="edit",
    name="sparse_upcycling",
    paper="Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints, arXiv:2212.05055; "
    "Sparse Upcycling: Inference Inefficient Finetuning, arXiv:2411.08968",
    claim="better than continued training of the dense model at equal training compute, by over 20 % in some cases; decoding up to "
    "40 % slower for larger models",
    cost="none to apply; memory of `experts` feed-forward layers a layer, FLOPs of those that a token goes to",
)
class SparseUpcycling:
    """Each expert begins as a copy of the layer it replaces, and a router that is drawn afresh chooses among them.

    Aran Komatsuzaki et al., 2022, arXiv:2212.05055; against continued training: Sasha Doubov et al., 2024, arXiv:2411.08968.

    y = sum_e w_e f_e(x), with all f_e = f at first. With `token_choice`, whose weights add up to 1, the model computes what it did,
    and differs once experts have learnt from different tokens.

    Different from the papers: the router is drawn with deviation 1 / sqrt(width), not 0.02; no token is dropped; all layers by
    default, where the first paper has every other one. Compare with training the same base without this edit, at equal FLOPs: a
    token costs more here, as it goes through several experts.

    For native models whose layers are SwiGLU, such as those of Llama's family (SmolLM2).

    at: the layers, as a pattern of [model] names them. experts: of each. router: which, with its options.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        at: str = ":",
        experts: Annotated[int, Interval(ge=2, le=4096)] = 8,
        router: Annotated[Choice, ROUTER] = DEFAULT,
    ) -> None:
        self.at, self.experts, self.router = at, experts, router

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The seed of the routers. Raises: UsageError where the model is not native, or a layer is none of those above."""
        gated_hidden(native(model, "sparse_upcycling"), self.at, "sparse_upcycling")
        return Decision({"seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with experts."""
        anatomy = native(model, "sparse_upcycling")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(decision.values["seed"]))
            for hidden, numbers in gated_hidden(anatomy, self.at, "sparse_upcycling").items():
                options: Mapping[str, Any] = {"experts": self.experts, "expert_hidden": hidden, "router": self.router}
                mixer = Choice.of("model", "moe", kind="channel mixer", **options)
                old = anatomy.swap_channel_mixers(",".join(map(str, numbers)), mixer)
                for number, dense in old.items():
                    self._copy(dense, anatomy.model.blocks[number].channel_mixer)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: experts have no plainer form."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return f"sparse_upcycling: layers {self.at} have {self.experts} experts each, all alike at first: {numbers:,} parameters"

    def _copy(self, dense: Any, mixer: Any) -> None:
        for stack, linear in ((mixer.input, dense.gate_up), (mixer.output, dense.output)):
            repeated = linear.weight.detach().expand(self.experts, -1, -1).clone()
            stack.weight = nn.Parameter(repeated, requires_grad=linear.weight.requires_grad)
