"""Weights that are drawn to zero until two of every four are there."""

from typing import Any

import torch
from torch import nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At
from shoestring.method import Count, Fraction, Positive, method
from shoestring.surgery.masking import Masking, check_pattern, kept_of, largest_of_groups, masked, pattern_for


@method(
    "surgery",
    kind="edit",
    name="cast",
    paper="CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for Large Language Models, arXiv:2509.25996",
    claim="LLaMA2-7B with 2 of 4 weights loses 0.09 of perplexity, after 2 % of the tokens it was trained on",
    cost="a sort of the weights by fours a step, and a mask of a byte a weight",
)
class CAST(Masking):
    """Pull all weights but the largest of every group towards zero while training, the harder the later, then leave them out.

        g <- g + lambda(p) sign(w)    for w outside of the pattern,   lambda(p) = decay mean |g| p / until,   progress p < until

    As the pull is part of the gradient, an Adam divides it by the size of the weight's own gradients (the paper's AdamS). The
    pattern is that of the present weights, so that a weight may come back. At `until` it is fixed, and each row is scaled to have
    the size that it had, |w|_1; the paper learns such scales on the way. Train with `--objective distillation`, as the paper
    does: the base is the teacher. The mask frees no bytes and no time by itself.

    keep, group: weights that stay, of how many.
    decay: of the pull, in proportion to the mean size of a gradient.
    until: share of the budget.
    """

    def __init__(self, *, keep: Count = 2, group: Count = 4, decay: Positive = 1.0, until: Fraction = 0.75) -> None:
        check_pattern("cast", keep, group)
        if until <= 0:
            raise ValueError("cast: until is a share of the budget above 0")
        self.keep, self.group, self.decay, self.until = keep, group, decay, until

    @classmethod
    def options_for(cls, share: float) -> dict[str, Any]:
        """As `Masking.options_for`."""
        return pattern_for("cast", share, 4)

    @torch.no_grad()
    def before_step(self, model: LanguageModule, at: At) -> Charge:
        """As `Stepped.before_step`: the pull."""
        if at.progress < self.until:
            for layer in masked(model):
                gradient = layer.weight.grad
                if gradient is not None:
                    outside = ~largest_of_groups(layer.weight, self.keep, self.group)
                    pull = self.decay * gradient.abs().mean() * at.progress / self.until
                    gradient.add_(layer.weight.sign() * outside * pull)
        return NOTHING

    def update(self, layer: nn.Linear, at: At) -> None:
        """As `Masking.update`."""
        kept = kept_of(layer)
        if at.progress < self.until or not bool(kept.all()):
            return
        kept.copy_(largest_of_groups(layer.weight, self.keep, self.group))
        before = layer.weight.abs().sum(1, keepdim=True)
        after = (layer.weight * kept).abs().sum(1, keepdim=True)
        layer.weight.mul_(before / after.clamp_min(1e-30))

    def said(self) -> str:
        return f"{self.keep} of every {self.group} of whose weights stay, from {self.until:.0%} of the budget on"
