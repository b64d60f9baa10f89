"""Expert pruning: experts that are seldom used are left out."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule, causally
from shoestring.errors import UsageError
from shoestring.method import Fraction, method
from shoestring.surgery.channel_swap import native
from shoestring.surgery.pruning import Kept, Pruning, best


@method(
    "surgery",
    kind="edit",
    name="expert_pruning",
    paper="Scalable and Efficient MoE Training for Multitask Multilingual Models, arXiv:2109.10465",
    claim="experts that are chosen by how often they are used make a smaller model that decodes faster, which some training heals",
    cost="one forward pass over the calibration text",
)
class ExpertPruning(Pruning):
    """Keep the experts of each layer that take the most tokens of a calibration text; the router chooses among those.

    Young Jin Kim et al., 2021, arXiv:2109.10465.

    Of a layer with E experts, the round(share E) with the largest counts c_e stay, with their rows of the router; its softmax is
    over those. The text says what the model is to serve: give one of that domain or language. At least as many stay as a token
    goes to. Written from the abstract and from memory: the paper's own choice of counts could not be checked.

    share: of each layer's experts, that stays.
    """

    def __init__(self, *, share: Fraction = 0.5) -> None:
        if not 0 < share < 1:
            raise ValueError("expert_pruning: share is above 0 and below 1")
        self.share = share

    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """As `Pruning.choose`. Raises: UsageError for a model without experts."""
        anatomy = native(model, "expert_pruning")
        axes = anatomy.axes("expert")
        if not axes:
            raise UsageError("expert_pruning: this model has no experts")
        if not evidence.text:
            raise UsageError("expert_pruning looks at text to decide: none was given to it")
        counts = {axis.layer: torch.zeros(axis.size, dtype=torch.float64) for axis in axes}
        spent = NOTHING
        with torch.no_grad(), causally(model):
            for batch in evidence.text:
                reading = model.read(batch.inputs.to(model.device))
                spent += Charge(flops=reading.cost.flops, read=batch.targets.numel(), calls=1)
                for layer, count in counts.items():
                    count += reading.notes[f"blocks.{layer}.load"].cpu()
        kept: Kept = []
        for axis in axes:
            least = math.ceil(anatomy.model.blocks[axis.layer].channel_mixer.router.least)
            stay = min(axis.size, max(least, round(self.share * axis.size)))
            kept.append({"kind": "expert", "layer": axis.layer, "indices": best(counts[axis.layer], stay)})
        return kept, {}, spent

    def apply(self, model: LanguageModule, decision: Decision) -> LanguageModule:
        """The smaller model."""
        model = super().apply(model, decision)
        native(model, "expert_pruning").restate_experts([one["layer"] for one in decision.values["keep"]])
        return model
