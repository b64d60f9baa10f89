"""Weights that go one after the other while a model is trained, from a quarter to three quarters of the budget."""

from typing import Any, ClassVar

from torch import nn

from shoestring.contract.objective import At
from shoestring.method import Decay, Fraction, method
from shoestring.surgery.masking import Masking, kept_of


@method(
    "surgery",
    kind="edit",
    name="sparse_schedule",
    paper="The Journey Matters: Average Parameter Count over Pre-training Unifies Sparse and Dense Scaling Laws, arXiv:2501.12486",
    claim="pruning from 25 % to 75 % of the compute is near the best of 80 schedules, with the loss of a dense model of as many "
    "parameters on average",
    cost="a sort of the weights twenty times, and a mask of a byte a weight",
)
class SparseSchedule(Masking):
    """Set the smallest weights of each matrix to zero, more and more of them.

        s(p) = sparsity (1 - (1 - (p - start) / (end - start))^3)   for progress p from start to end,   sparsity after it

    Of each matrix, the share s of the weights of least size is zero; what is gone stays gone. The mask is worked out anew each time
    that s has grown by a twentieth of `sparsity`. The law of the paper, for the parameters that were there on average, is the law
    `average_parameters` of plans. The mask frees no bytes and no time by itself.

    sparsity: share of the weights that goes.
    start, end: shares of the budget.
    """

    stages: ClassVar[int] = 20

    def __init__(self, *, sparsity: Decay = 0.5, start: Fraction = 0.25, end: Fraction = 0.75) -> None:
        if not start < end or not sparsity:
            raise ValueError("sparse_schedule: sparsity is above 0, and start lies before end")
        self.sparsity, self.start, self.end = sparsity, start, end

    @classmethod
    def options_for(cls, share: float) -> dict[str, Any]:
        """As `Masking.options_for`."""
        return {"sparsity": 1 - share}

    def at(self, progress: float) -> float:
        """s."""
        part = min(max((progress - self.start) / (self.end - self.start), 0.0), 1.0)
        return self.sparsity * (1 - (1 - part) ** 3)

    def update(self, layer: nn.Linear, at: At) -> None:
        """As `Masking.update`."""
        kept = kept_of(layer)
        total, gone = kept.numel(), kept.numel() - int(kept.sum())
        stage = self.sparsity / self.stages
        wanted = int(total * stage * int(self.at(at.progress) / stage + 1e-9))
        if wanted <= gone:
            return
        sizes = layer.weight.abs().masked_fill(~kept, -1.0).flatten()
        kept.view(-1)[sizes.argsort(stable=True)[:wanted]] = False

    def said(self) -> str:
        return f"{self.sparsity:.0%} of whose weights go from {self.start:.0%} to {self.end:.0%} of the budget"
