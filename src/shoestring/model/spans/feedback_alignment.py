"""Direct feedback alignment: layers learn from the error at the top, which comes to each by a random matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.errors import UsageError
from shoestring.method import Seed, method
from shoestring.model.span import Inner, InnerLayers, Span, Where


@method(
    "model",
    kind="span",
    name="feedback_alignment",
    paper="Scaling Laws Beyond Backpropagation, arXiv:2210.14593",
    claim="there is never a regime for which the degradation in loss is worth the compute that may be saved",
    cost="one product of width x width more; the backward passes of the layers within wait for none of each other",
)
class FeedbackAlignmentSpan(Span):
    """The layers within are trained by direct feedback alignment; all that is outside, and each layer within itself, by gradients.

    Matthew Filipovich et al., 2022, arXiv:2210.14593; Arild Nøkland, Direct Feedback Alignment Provides Learning in Deep Neural
    Networks, 2016, arXiv:1609.01596. Let e = dL / dx_n be the error [B, T, width] at the output of the last layer within. Then

        dL / dx_i  is taken to be  e R  for i < n,   R ~ N(0, 1 / width) [width, width], fixed

    What comes into the first layer within gets its gradient from that layer. Forward, and without gradients, nothing is changed.

    Different from the paper: the error is that of the hidden state after the last layer, not of the logits, and one R serves all
    layers. The products of a backward pass are as many as before, and here they are still made one layer after the other.

    seed: of R.
    """

    both_ways = True

    def __init__(self, width: int, *, seed: Seed = 0) -> None:
        super().__init__()
        drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.feedback = nn.Buffer(drawn * width**-0.5, persistent=False)

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        if not torch.is_grad_enabled():
            return inner(x, where, caches)
        if not isinstance(inner, InnerLayers):
            raise UsageError("feedback_alignment takes the layers within apart, and got a function")
        notes: Notes = {}
        found = list[Tensor]()
        for one, cache in zip(inner.each, caches, strict=True):
            x, told = one(x if not found else found[-1].detach(), where, [cache])
            found.append(x)
            notes.update(told)
        answer: Tensor = _Feedback.apply(self.feedback, *found)
        return answer, notes

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        width = self.feedback.shape[0]
        return inner(shape, inputs) + (2 * shape.tokens * width**2 if shape.backward else 0)


class _Feedback(torch.autograd.Function):
    """The last of some hidden states; backward, each other gets e R of the error e there."""

    @staticmethod
    def forward(ctx: Any, feedback: Tensor, *states: Tensor) -> Tensor:
        ctx.save_for_backward(feedback)
        ctx.others = len(states) - 1
        return states[-1].view_as(states[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (error,), (feedback,) = gradients, ctx.saved_tensors
        told = error @ feedback.to(error.dtype) if ctx.others else None
        return (None, *[told] * ctx.others, error)
