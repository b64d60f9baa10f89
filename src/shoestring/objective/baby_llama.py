"""Learning from the mean of several teachers."""

from torch import Tensor

from shoestring.method import Count, Fraction, Positive, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.token_distillation import TokenDistillation, kullback_leibler


@method(
    "objective",
    name="baby_llama",
    paper="Baby Llama: knowledge distillation from an ensemble of teachers trained on a small dataset with no performance penalty, "
    "arXiv:2308.02019",
    claim="on 10 M words, a 58 M-parameter student is better than both of its teachers and than itself trained without them",
    cost="a forward pass of each teacher a token; from a cache, a few bytes a token",
)
class BabyLlama(TokenDistillation):
    """The divergence from the mean distribution of several teachers, mixed with the loss on the text.

        L = weight tau^2 KL(p || q) + (1 - weight) CE,   p = mean_k softmax(logits_k / tau),   q = softmax(logits / tau)

    Teachers are trained on the same text as the student, and are as large as it, or larger. Means are over the targets that count.

    teachers: places of models that read the same tokens; '' among them is the base of the run.
    weight: of the divergence, from 0 to 1.
    temperature: tau.
    cache: a folder that keeps what the teachers say together; '': none.
    top: tokens of each place that the cache keeps.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teachers: tuple[str, ...] = ("",),
        weight: Fraction = 0.5,
        temperature: Positive = 2.0,
        cache: str = "",
        top: Count = 64,
    ) -> None:
        if not teachers:
            raise ValueError("baby_llama: teachers names at least one model")
        super().__init__(teachers, weight=weight, temperature=temperature, cache=cache, top=top)

    def divergence(self, taught: Tensor, own: Tensor) -> Tensor:
        """As `TokenDistillation.divergence`."""
        return kullback_leibler(taught, own)
