"""A span: what wraps a run of layers, and says which tokens go through them, how often, or whether.

A registered method of kind 'span' is a subclass of `Span` with a constructor `(width, *, options)`. Its own weights are
parameters of it; those of the layers are not.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.errors import UsageError


class Where(NamedTuple):
    """What layers are told of the tokens of a pass.

    tables: (cos, sin) of each of the model's rotary tables. mask: as `Attention.forward` takes it. documents: [B, T] or None.
    trail: what layers leave for later ones of the same pass, by name. None: later ones see other tokens.
    values: the token ids [B, T] that the model reads, for a span that goes by them.
    """

    tables: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None
    documents: Tensor | None
    trail: dict[str, Any] | None = None
    values: Tensor | None = None


Inner = Callable[[Tensor, Where, Sequence[Any]], tuple[Tensor, Notes]]
"""The layers within: (x [B, T, width], where, the cache of each or None) -> (x, notes)."""


class InnerLayers(NamedTuple):
    """An `Inner` that a span may also take apart: what the stack gives to its spans.

    run: all layers in order. blocks: the layers. tables: of each, which of `Where.tables` it reads.
    """

    run: Inner
    blocks: tuple[Any, ...]
    tables: tuple[int, ...]

    def __call__(self, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        """As `Inner`."""
        return self.run(x, where, caches)


class Span(nn.Module, abc.ABC):
    """Wraps a run of layers.

    compiles: whether the layers within always see shapes that a compiler has seen. both_ways: whether tokens within may see those
    after them.
    """

    compiles = True
    both_ways = False

    def told(self, vocabulary: int) -> None:
        """Told once, before weights are drawn, how many tokens there are: for a span that goes by token ids, which may make weights
        of its own here. Raises: ValueError where it cannot read those."""

    @abc.abstractmethod
    def forward(self, inner: Inner, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        """x [B, T, width] -> (x [B, T, width], notes).

        caches: of each layer within, as `new_cache` made it; None without a cache.
        """

    @abc.abstractmethod
    def flops(self, inner: Callable[[Shape, bool], int], shape: Shape, inputs: bool) -> int:
        """Operations of a pass.

        inner: of the layers within, of a shape and whether x takes a gradient. inputs: whether it does here.
        """

    def new_cache(self, make: Callable[..., Any]) -> Any:
        """The state of one layer within. make: makes that of the layer by itself, or None; `make(room=n)` of n tokens at most."""
        return make()

    def held(self, token: int, state: int, itemsize: int) -> tuple[int, int]:
        """Bytes that the state of a layer within takes: (of each token, of a row however long).

        token, state: of the layer by itself. itemsize: bytes of a number of the model.
        """
        return token, state


def span_of(choice: Choice, width: int, vocabulary: int, causal: bool) -> Span:
    """A span of a model of these sizes. Raises: UsageError where it does not fit."""
    try:
        made: Span = choice.build(width)
        made.told(vocabulary)
    except ValueError as error:
        raise UsageError(f"the span {choice.name}: {error}") from None
    if not (causal or made.both_ways):
        raise UsageError(f"the span {choice.name} chooses tokens in order, and this model sees both ways: leave it out")
    return made
