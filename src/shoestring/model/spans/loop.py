"""A loop: the same layers again and again, so that a model is deeper than it is large."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.method import method
from shoestring.model.recurrent_cache import LayerStates
from shoestring.model.span import Inner, Span, Where


@method(
    "model",
    kind="span",
    name="loop",
    paper="Teaching Pretrained Language Models to Think Deeper with Retrofitted Recurrence, arXiv:2511.07384",
    claim="better performance at a given compute budget than post-training the model that is not recurrent, on mathematics",
    cost="`times` the FLOPs and the cache of the layers within, and no weights more",
)
class LoopSpan(Span):
    """The layers within are gone through `times` times.

    Sean McLeish et al., 2025, arXiv:2511.07384; Mostafa Dehghani et al., Universal Transformers, 2018, arXiv:1807.03819.

    s_0 = x, s_i = layers(s_{i-1}), or layers(s_{i-1} + x) with `inject`; the answer is s_times. x: [B, T, width].

    Different from the paper: the state begins as x and not as noise, x is added and not joined by a matrix, and the number of times
    is fixed, without a curriculum.

    times: how often. through: of the last how many passes gradients go back; 0: all. inject: whether x is added before every pass
    but the first.
    """

    both_ways = True

    def __init__(
        self,
        width: int,
        *,
        times: Annotated[int, Interval(ge=1, le=256)] = 2,
        through: Annotated[int, Interval(ge=0, le=256)] = 0,
        inject: bool = False,
    ) -> None:
        super().__init__()
        if through > times:
            raise ValueError(f"through = {through} passes cannot be more than times = {times}")
        self.times, self.through, self.inject = times, through or times, inject

    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        notes: Notes = {}
        state = x
        for number in range(self.times):
            own = [None if cache is None else cache.each[number] for cache in caches]
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.times - self.through):
                state, told = inner(state + x if self.inject and number else state, where, own)
            for name, value in told.items():
                notes[name] = notes[name] + value if name in notes else value
        return state, notes

    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        apart = self.times - self.through  # passes without a backward pass
        without = apart * inner(shape._replace(backward=False), inputs)
        first = inputs if not apart or self.inject else False
        if self.through == 1:
            return without + inner(shape, first)
        # from the second on, what comes in takes a gradient
        return without + inner(shape, first) + (self.through - 1) * inner(shape, True)

    def new_cache(self, make: Callable[..., Any]) -> Any:
        each = [make() for _ in range(self.times)]
        return None if each[0] is None else LayerStates(each)

    def held(self, token: int, state: int, itemsize: int) -> tuple[int, int]:
        return self.times * token, self.times * state
