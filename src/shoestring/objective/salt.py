"""A smaller teacher first, then the text alone."""

from torch import Tensor

from shoestring.contract.objective import At
from shoestring.method import Count, Fraction, Positive, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.token_distillation import TokenDistillation, kullback_leibler


@method(
    "objective",
    name="salt",
    paper="A Little Help Goes a Long Way: Efficient LLM Training by Leveraging Small LMs, arXiv:2410.18779",
    claim="a 2.8 B-parameter model that first learns from one of 1.5 B trains in less time, and ends better than on text alone",
    cost="a forward pass of the small teacher a token in the first part of the budget; nothing after it",
)
class Salt(TokenDistillation):
    """Distil from a smaller model while the budget is young, then train on the text alone.

        L = weight tau^2 KL(p || q) + (1 - weight) CE   while progress < until,   then   L = CE

    The teacher is not asked after that, and costs nothing. The paper also chooses which sequences the first part reads, by the
    small model's loss: that is `perplexity_bands` of the curators, and not done here.

    teacher: the place of a model, smaller than the one that is trained; '': the base of the run.
    until: share of the budget at which the teacher is left.
    weight: of the divergence before that.
    temperature: tau.
    cache: a folder that keeps what the teacher says; '': none.
    top: tokens of each place that the cache keeps.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        until: Fraction = 0.2,
        weight: Fraction = 0.5,
        temperature: Positive = 1.0,
        cache: str = "",
        top: Count = 64,
    ) -> None:
        super().__init__((teacher,), weight=weight, temperature=temperature, cache=cache, top=top)
        self.until = until

    def weight_at(self, at: At) -> float:
        """As `TokenDistillation.weight_at`."""
        return self.weight if at.progress < self.until else 0.0

    def divergence(self, taught: Tensor, own: Tensor) -> Tensor:
        """As `TokenDistillation.divergence`."""
        return kullback_leibler(taught, own)
