"""Tied feed-forward weights: one channel mixer for all layers, which the first of them holds."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from shoestring.config import Choice, Pick
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.errors import UsageError
from shoestring.method import method

MIXER = Pick("model", "channel mixer", default="swiglu")
DEFAULT = MIXER.choice()
TIED = "tied"
"""What the layer that leads is called in a trail."""


class LayerGain(nn.Module):
    """One factor for each feature, [width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


@method(
    "model",
    kind="channel mixer",
    name="tied",
    paper="Super Tiny Language Models, arXiv:2405.14159",
    claim="tied weights, pooled bytes and efficient training take 90 to 95 % of the parameters of traditional models, with "
    "competitive performance",
    cost="the FLOPs of the channel mixer in every layer, its weights once; a gain of width in each layer that follows",
)
class TiedFeedForward(nn.Module):
    """The layer that leads has a channel mixer; those after it use the same weights, each with a gain of its own.

    Dylan Hillier et al., 2024, arXiv:2405.14159.

        y = F(x) in the layer that leads;   y = g_l * F(x) in layer l after it,   g_l: [width], which begins at zero

    The layers that follow one another in a model, or within a span that chooses or pools tokens, can share: one has `leads = true`,
    the rest `leads = false`. x: [B, T, width] -> [B, T, width].

    Cost: a layer that follows states the operations of F as if it were trained.
    Different from the paper, whose abstract names tying alone: the gains.

    leads: whether this layer holds the weights; else it uses those of the last before it that does.
    mixer: F, a channel mixer without a router; the same in all layers that share.
    """

    expansion = 8 / 3
    early = True
    compiles = False

    def __init__(
        self, width: int, hidden: int, *, leads: bool = True, mixer: Annotated[Choice, MIXER] = DEFAULT
    ) -> None:
        super().__init__()
        self.leads = leads
        if leads:
            self.mixer = mixer.build(width, hidden)
        else:
            self.gain = LayerGain(width)
        with torch.device("meta"):
            like = mixer.build(width, hidden)
        if any(getattr(like, name, False) for name in ("early", "tells")):
            raise ValueError(f"{mixer.name} says more than what it adds, and cannot be tied: give swiglu, say")
        self._like = (like,)  # no part of this layer: what its operations are asked of

    @staticmethod
    def alone(options: Mapping[str, Any]) -> dict[str, Any]:
        """As `model.block` says: it leads."""
        return {"leads": True}

    @property
    def output(self) -> nn.Module:
        """What writes to the stream: of F in the layer that leads."""
        found: nn.Module = self.mixer.output if self.leads else self.gain
        return found

    def route(self, x: Tensor, trail: dict[str, Any] | None = None) -> nn.Module:
        """F, which the layer that leads leaves to those after it. trail: what earlier layers left."""
        if self.leads:
            if trail is not None:
                trail[TIED] = self.mixer
            found: nn.Module = self.mixer
            return found
        if trail is None or TIED not in trail:
            raise UsageError(
                "a layer has the channel mixer tied with leads = false, and none before it that reads the same tokens leads"
            )
        shared: nn.Module = trail[TIED]
        return shared

    def forward(self, x: Tensor, routed: nn.Module | None = None) -> Tensor:
        """As the class says. routed: F; None: of the layer itself."""
        found: Tensor = (self.mixer if routed is None else routed)(x)
        return found if self.leads else self.gain(found)

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: those of F in the layer that leads; the width of the gain elsewhere."""
        if not self.leads:
            return (Axis("width", None, len(self.gain.weight), (Slice("gain.weight", 0),)),)
        return tuple(
            Axis(one.kind, None, one.size, tuple(part._replace(name=f"mixer.{part.name}") for part in one.slices))
            for one in self.mixer.axes()
        )

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        found: int = (self.mixer if self.leads else self._like[0]).flops(shape, inputs)
        return found
