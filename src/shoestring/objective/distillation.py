"""Learning from another model's distribution over the next token."""

from typing import Literal

from torch import Tensor

from shoestring.method import Count, Fraction, Positive, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.token_distillation import TokenDistillation, kullback_leibler

Divergence = Literal["forward", "reverse"]


@method(
    "objective",
    name="distillation",
    paper="Distilling the Knowledge in a Neural Network, arXiv:1503.02531; "
    "Compact Language Models via Pruning and Knowledge Distillation, arXiv:2407.14679",
    claim="a pruned model that learns from the logits of the one it was made of needs far fewer tokens than on text alone",
    cost="a forward pass of the teacher, and one more product of the output layer, a token; from a cache, a few bytes a token",
)
class Distillation(TokenDistillation):
    """The divergence of the model's next-token distribution q from the teacher's p, mixed with the loss on the text.

        L = weight tau^2 D + (1 - weight) CE,   D = KL(p || q) (forward) or KL(q || p) (reverse), of softmax(logits / tau)

    Means over the targets that count. tau^2 keeps the gradients' size. The reverse divergence here is of each token given the
    text; `minillm` takes it over texts that the student writes.

    teacher: the place of a model; '': the base of the run, as it was before its edits.
    weight: of the divergence, from 0 to 1.
    temperature: tau.
    divergence: 'forward' or 'reverse', as above.
    cache: a folder that keeps what the teacher says, so that it is asked once for each row; '': none.
    top: tokens of each place that the cache keeps.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        weight: Fraction = 1.0,
        temperature: Positive = 1.0,
        divergence: Divergence = "forward",
        cache: str = "",
        top: Count = 64,
    ) -> None:
        super().__init__((teacher,), weight=weight, temperature=temperature, cache=cache, top=top)
        self.direction = divergence

    def divergence(self, taught: Tensor, own: Tensor) -> Tensor:
        """As `TokenDistillation.divergence`."""
        return kullback_leibler(taught, own) if self.direction == "forward" else kullback_leibler(own, taught)
