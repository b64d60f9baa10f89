"""Orthogonal growth of a mixture of experts: more layers, and more experts in each."""

from typing import Annotated, Any

import torch
from annotated_types import Interval

from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Fraction, NonNegative, method
from shoestring.surgery.channel_swap import native
from shoestring.surgery.resize import Cut, resize

MATRICES = "input", "output"


@method(
    "surgery",
    kind="edit",
    name="orthogonal_growth",
    paper="Recycling Pretrained Checkpoints: Orthogonal Growth of Mixture-of-Experts for Efficient Large Language Model "
    "Pre-Training, arXiv:2510.08008",
    claim="10.66 % higher accuracy than training from scratch with the same further compute, from 17B to 70B parameters; the more "
    "was put into the checkpoint before, the better",
    cost="none to apply; a pass costs what the larger model's costs",
)
class OrthogonalGrowth:
    """Put a copy behind layers (depth), and copies with noise beside experts (width).

    Ruizhe Wang et al., 2025, arXiv:2510.08008.

    Depth: layers l become l, l', evenly over the model (interposition), and not the whole stack twice: it suits models whose layers
    have found their parts. Width: expert e becomes e, e', with the same row of the router, and

        W_e' = W_e + noise s(W_e) N(0, 1),   s: the deviation of the entries of W_e

    With `more_active`, a token goes to as many more of them, so that without noise the layer computes what it did; else it costs
    what it did, and is another layer at first. Growth in depth alone changes the function.

    Different from the paper, or not checked in it: that the noise is in shares of s, and what it does to the number of experts of a
    token. The optimiser's state begins anew, as with every edit; warm the learning rate up.

    depth: share of the layers that are copied. experts: times as many; 1: as they are. noise: on copied experts, as a share of the
    deviation of their weights. more_active: whether a token goes to as many times more experts.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        depth: Fraction = 1.0,
        experts: Annotated[int, Interval(ge=1, le=64)] = 2,
        noise: NonNegative = 0.01,
        more_active: bool = True,
    ) -> None:
        if experts == 1 and depth == 0:
            raise ValueError("orthogonal_growth: nothing is to grow: give depth above 0, or experts above 1")
        self.depth, self.experts, self.noise, self.more_active = depth, experts, noise, more_active

    def decide(self, model: LanguageModule, evidence: Evidence) -> Decision:
        """Which layers are copied, and the seed of the noise. Raises: UsageError for a model without experts."""
        anatomy = native(model, "orthogonal_growth")
        if not anatomy.axes("expert"):
            raise UsageError(
                "orthogonal_growth is for mixtures of experts: this model has none; see grow_depth, grow_hidden"
            )
        total = len(anatomy.layers)
        count = max(1, round(self.depth * total)) if self.depth else 0
        copied = sorted({int(total / count * (place + 0.5)) for place in range(count)}) if count else []
        return Decision({"copied": copied, "seed": evidence.seed})

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The larger model."""
        anatomy = native(model, "orthogonal_growth")
        if decision.values["copied"]:
            anatomy.copy_layers(decision.values["copied"])
        if self.experts == 1:
            return model
        generator = torch.Generator().manual_seed(int(decision.values["seed"]))
        cuts = [Cut(axis, list(range(axis.size)) * self.experts, repeats=True) for axis in anatomy.axes("expert")]
        for cut in cuts:
            resize(model, cut)
            mixer: Any = anatomy.model.blocks[cut.axis.layer].channel_mixer
            for name in MATRICES:
                self._disturb(getattr(mixer, name).weight.data[cut.axis.size :], generator)
            if self.more_active:
                mixer.router.choose_more(self.experts)
        anatomy.restate_experts([cut.axis.layer for cut in cuts])
        model.changed()
        return model

    def fold(self, model: LanguageModule) -> LanguageModule:
        """The model as it is: its layers are of a kind that there was."""
        return model

    def describe(self, model: LanguageModule, decision: Decision) -> str:
        copied = ", ".join(map(str, decision.values["copied"])) or "none"
        numbers = sum(parameter.numel() for parameter in model.parameters())
        return (
            f"orthogonal_growth: copies of layers {copied}, {self.experts} times the experts, "
            f"noise {self.noise:g}: {numbers:,} parameters"
        )

    def _disturb(self, copies: torch.Tensor, generator: torch.Generator) -> None:
        """copies: [E, out, in], in place."""
        deviation = copies.float().std((1, 2), keepdim=True)
        drawn = torch.randn(copies.shape, generator=generator).to(copies.device)
        copies += (self.noise * deviation * drawn).to(copies.dtype)
