"""Pruning of models with state-space layers, whose heads go group by group."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.anatomy import Axis
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method
from shoestring.surgery.edits.minitron import activity
from shoestring.surgery.observe import observe
from shoestring.surgery.pruning import Shares, best, kept_of
from shoestring.surgery.scored_pruning import ScoredPruning, Scores
from shoestring.surgery.state_space import StateSpaceLayer, state_space_layers


@method(
    "surgery",
    kind="edit",
    name="minitron_ssm",
    paper="Efficient Hybrid Language Model Compression through Group-Aware SSM Pruning, arXiv:2504.11409",
    claim="Nemotron-H 8B comes down to 4B with up to 40 times fewer training tokens, and is twice as fast",
    cost="two forward passes over the calibration text",
)
class MinitronSSM(ScoredPruning):
    """Leave the heads, channels and states of state-space layers that are the most active, beside what `minitron` leaves.

    Ali Taghibakhshi et al., 2025, arXiv:2504.11409.

    With s [heads, channels] = || mean_t | W_x u |_{b,t} ||_2 over b, what the input matrix writes of x before the convolution:

        channel c:  || s_{., c} ||_2 over the heads          head h:  || s_{h, .} ||_2 over the channels that stay

    Heads of one group share B and C, so that of each group as many stay, in the order of the groups; all heads of a layer have the
    same channels. The other axes count as in `minitron`; layers go by `drop_layers` before. A distilling run heals.

    Different from the paper: the state can be cut too, which it leaves whole: state n counts as || B_n || || C_n ||, each as s
    above, over groups. Shares are given, and not searched for.

    width, hidden, heads: shares that stay. ssm_heads, ssm_channels, ssm_state: the same, of state-space layers (`mamba2`).
    multiple: sizes of width, hidden, channels and state are multiples of this.
    """

    def __init__(
        self,
        *,
        width: Fraction = 1.0,
        hidden: Fraction = 1.0,
        heads: Fraction = 1.0,
        ssm_heads: Fraction = 1.0,
        ssm_channels: Fraction = 1.0,
        ssm_state: Fraction = 1.0,
        multiple: Count = 8,
    ) -> None:
        self.shares, self.multiple = Shares(width, hidden, heads, ssm_heads, ssm_channels, ssm_state), multiple

    def scores(self, model: LanguageModule, evidence: Evidence, kinds: Sequence[str]) -> tuple[Scores, Charge]:
        """As `ScoredPruning.scores`."""
        dense = [kind for kind in kinds if kind in ("key_value_head", "hidden", "width")]
        found, spent = activity(model, evidence, dense) if dense else ({}, NOTHING)
        own = [kind for kind in kinds if kind not in dense]
        if not own:
            return found, spent
        layers = state_space_layers(model)
        if not layers:
            raise UsageError("minitron_ssm: this model has no state-space layer (mamba2): give width, hidden or heads")
        written, took = _written(model, evidence, layers)
        for layer, (x, b, c) in zip(layers, written, strict=True):
            channels, share = x.norm(dim=0), self.shares.ssm_channels
            stay = best(channels, kept_of(Axis("ssm_channel", layer.number, len(channels)), share, self.multiple))
            scores = {
                "head": x[:, stay].norm(dim=1),
                "ssm_channel": channels,
                "ssm_state": b.norm(dim=0) * c.norm(dim=0),
            }
            found |= {(kind, layer.number): scores[kind] for kind in own}
        return found, spent + took

    def _asked(self) -> list[tuple[str, float]]:
        own = self.shares
        return [
            *super()._asked(),
            ("ssm_channel", own.ssm_channels),
            ("head", own.ssm_heads),
            ("ssm_state", own.ssm_state),
        ]


def _written(
    model: LanguageModule, evidence: Evidence, layers: Sequence[StateSpaceLayer]
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Charge]:
    """(of each layer, how large x [heads, channels], B [groups, state] and C are on the text; what measuring took)."""
    by_name = {layer.input: layer for layer in layers}
    squares: dict[str, Tensor] = {}

    def look(name: str, inputs: Tensor) -> None:
        written = F.linear(inputs.float(), by_name[name].weight(model).float())
        squares[name] = squares.get(name, torch.zeros(())) + written.abs().mean(1).square().sum(0).cpu()

    spent = observe(model, evidence.text, list(by_name), look)
    places = sum(batch.targets.numel() for batch in evidence.text)
    spent += Charge(flops=sum(2 * places * layer.weight(model).numel() for layer in layers))
    return [layer.parts(squares[layer.input].sqrt()) for layer in layers], spent
