"""A span: what wraps a run of layers, and says which tokens go through them, how often, or whether.

A registered method of kind 'span' is a subclass of `Span` with a constructor `(width, *, options)`. Its own weights are
parameters of it; those of the layers are not.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shoestring.contract.cost import Shape
from shoestring.contract.model import Notes
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.layout import SpanAt, places


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

    run: all layers in order. each: one layer alone. blocks: the layers. tables: of each, which of `Where.tables` it reads.
    """

    run: Inner
    each: tuple[Inner, ...]
    blocks: tuple[Any, ...]
    tables: tuple[int, ...]

    def __call__(self, x: Tensor, where: Where, caches: Sequence[Any]) -> tuple[Tensor, Notes]:
        """As `Inner`."""
        return self.run(x, where, caches)


class CacheSizes(NamedTuple):
    """What a cache is made for. rows: texts. room: the most tokens of each. dtype, device: of the model's numbers."""

    rows: int
    room: int
    dtype: torch.dtype
    device: torch.device


class Span(nn.Module, abc.ABC):
    """Wraps a run of layers.

    compiles: whether the layers within always see shapes that a compiler has seen. both_ways: whether tokens within may see those
    after them. replaces_embedding: whether the layers within read nothing of the tokens' embeddings.
    """

    compiles = True
    both_ways = False
    replaces_embedding = False

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

    def new_caches(self, makes: Sequence[Callable[..., Any]], sizes: CacheSizes) -> list[Any]:
        """The states of the layers within; what the span itself keeps lies in one of them.

        makes: of each layer, as `new_cache` takes it.
        """
        return [self.new_cache(make) for make in makes]

    def held(self, token: int, state: int, itemsize: int) -> tuple[int, int]:
        """Bytes that the state of a layer within takes: (of each token, of a row however long).

        token, state: of the layer by itself. itemsize: bytes of a number of the model.
        """
        return token, state

    def all_held(self, each: Sequence[tuple[int, int]], itemsize: int) -> list[tuple[int, int]]:
        """As `held`, of all layers within, with what the span itself keeps. each: (token, state) of the layers by themselves."""
        return [self.held(token, state, itemsize) for token, state in each]


def span_of(item: SpanAt, config: ModelConfig) -> Span:
    """A span of a model. Raises: UsageError where it does not fit."""
    name = item.span.name
    try:
        made: Span = item.span.build(config.width)
        made.told(config.vocabulary)
    except ValueError as error:
        raise UsageError(f"the span {name}: {error}") from None
    if not (config.causal or made.both_ways):
        raise UsageError(f"the span {name} chooses tokens in order, and this model sees both ways: leave it out")
    if made.replaces_embedding and places(item.at, config.layers)[0]:
        raise UsageError(
            f"the span {name} reads tokens in place of the embedding: let it begin at layer 0, not at = '{item.at}'"
        )
    if made.replaces_embedding and not config.tied:
        raise UsageError(f"beside the span {name} the embedding is the output head alone: give --model.tied true")
    return made
