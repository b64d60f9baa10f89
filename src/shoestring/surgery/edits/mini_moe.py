"""A student with more weights and no more operations: its channel mixers become mixtures of minimal experts."""

from typing import Any

import torch
from torch import nn

from shoestring.config import Choice
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, NonNegative, method


@method(
    "surgery",
    kind="edit",
    name="mini_moe",
    paper="Lifting the Curse of Capacity Gap in Distilling Language Models, arXiv:2305.12129",
    claim="about 95 % of the teacher's GLUE score at about 50 times compression, for small numbers of operations",
    cost="the channel mixers' weights times the experts; operations of a router beside",
)
class MiniMoE:
    """Make each channel mixer a mixture of `experts` of its size, of which a token goes through one.

    Chen Zhang et al., 2023, arXiv:2305.12129.

        y = p_e E_e(x),   e = argmax p,   p = softmax(G x),   E_e: SwiGLU of the hidden width that the layer had

    Operations are the dense student's, and experts x width a token for the router. A small student, by `drop_layers` or `minitron`
    before, learns from its teacher with `distillation` then. Every expert begins as the layer, with its output times `experts`, and
    G near zero, so that p_e is near 1 / experts and the model computes nearly what it did.

    Different from the paper: it makes mixtures of attention heads too, of encoders; here channel mixers alone. How its experts
    begin could not be read. Gated layers (`swiglu`) alone, as experts are such. There is no form of plain layers.

    experts: how many. at: the layers, as a pattern of [model] names them. balance: coefficient of the term that evens the load.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, *, experts: Count = 4, at: str = ":", balance: NonNegative = 0.01) -> None:
        self.experts, self.at, self.balance = experts, at, balance

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """The seed of the routers. Raises: UsageError for a model that is not native, or whose layers are not gated."""
        self._layers(model)
        return Decision({"seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The model with mixtures."""
        own = [(number, model.get_submodule(f"{name}.channel_mixer")) for number, name in self._layers(model)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(decision.values["seed"]))
            for number, dense in own:
                self._put(model, number, dense)
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """Raises: UsageError: there is none."""
        raise UsageError("mini_moe: a mixture computes more than one matrix can, and has no form of plain layers")

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return f"mini_moe: layers {self.at} are mixtures of {self.experts} experts, one a token: {numbers:,} parameters"

    def _layers(self, model: LanguageModule) -> list[tuple[int, str]]:
        """The numbers and names of the layers that change."""
        anatomy: Any = model.anatomy()
        if not hasattr(anatomy, "swap_channel_mixers"):
            raise UsageError("mini_moe is for native models: the layers of a wrapped one are its makers' own")
        found = [(number, anatomy.layers[number]) for number in anatomy.numbers(self.at)]
        for number, name in found:
            mixer: Any = model.get_submodule(f"{name}.channel_mixer")
            parts = [getattr(mixer, part, None) for part in ("gate_up", "output")]
            if any(type(part) is not nn.Linear for part in parts):
                raise UsageError(
                    f"mini_moe: experts are gated layers (swiglu) of plain matrices, and layer {number} has none such"
                )
        return found

    def _put(self, model: LanguageModule, number: int, dense: Any) -> None:
        """Put a mixture of copies of a layer in its place."""
        hidden = dense.output.in_features
        router = {"name": "token_choice", "active": 1, "normalised": False, "balance": self.balance}
        options = {"experts": self.experts, "expert_hidden": hidden, "router": router}
        anatomy: Any = model.anatomy()
        anatomy.swap_channel_mixers(str(number), Choice.of("model", "moe", kind="channel mixer", **options))
        made: Any = model.get_submodule(f"{anatomy.layers[number]}.channel_mixer")
        if made.input.weight.is_meta:
            return
        with torch.no_grad():
            made.input.weight.copy_(dense.gate_up.weight.expand_as(made.input.weight))
            made.output.weight.copy_(self.experts * dense.output.weight.expand_as(made.output.weight))
            made.router.gate.weight.mul_(0.01)
            for parameter in made.parameters():
                parameter.requires_grad_(dense.output.weight.requires_grad)
