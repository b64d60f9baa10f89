"""Pruning by domain: each layer keeps as many hidden features as the text of the domain needs of it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.method import Count, Fraction, method
from shoestring.surgery.edits.minitron import activity
from shoestring.surgery.pruning import Kept, Pruning, Shares, axis_of, best, kept_count


@method(
    "surgery",
    kind="edit",
    name="mini_gpts",
    paper="Mini-GPTs: Efficient Large Language Models through Contextual Pruning, arXiv:2312.12682",
    claim="Phi-1.5 and others pruned by the text of one domain keep what that domain needs",
    cost="one forward pass over the calibration text, which is of the domain",
)
class MiniGPTs(Pruning):
    """Leave the hidden features that the text of a domain activates, layer by layer as many as it asks.

    With F_{l,i} the activity of feature i of layer l on the text (as `minitron` measures it),

        a feature stays where  F_{l,i} / mean_j F_{l,j} >= threshold

    and the threshold is the one at which `hidden` of all features stay. So layers end with unlike sizes: the result is a folder of
    Shoestring's, as no stock class of transformers holds it. The paper also cuts tokens that the domain has not; a tokenizer
    would have to change with that, so it is not done here.

    hidden: share that stays, of all layers together.
    multiple: sizes are multiples of this.
    """

    def __init__(self, *, hidden: Fraction = 0.75, multiple: Count = 8) -> None:
        self.shares, self.multiple = Shares(hidden=hidden), multiple

    def choose(self, model: LanguageModule, evidence: Evidence) -> tuple[Kept, Mapping[str, Tensor], Charge]:
        """As `Pruning.choose`."""
        if not model.anatomy().axes("hidden"):
            axis_of(model.anatomy(), "hidden", None)  # says that there is none
        found, spent = activity(model, evidence, ["hidden"])
        relative = {layer: score / score.mean().clamp_min(1e-30) for (_, layer), score in found.items()}
        every = torch.cat(list(relative.values())).sort(descending=True).values
        threshold = float(every[max(1, round(len(every) * self.shares.hidden)) - 1])
        kept: Kept = []
        for layer, score in relative.items():
            share = float((score >= threshold).sum()) / len(score)
            count = kept_count(len(score), share, self.multiple) if share else min(self.multiple, len(score))
            kept.append({"kind": "hidden", "layer": layer, "indices": best(score, count)})
        return kept, {}, spent
