"""How a layer attends otherwise than its model does: a rule beside it, with a cache of its own."""

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from shoestring.contract.cache import Pass
from shoestring.contract.cost import Shape, trains
from shoestring.contract.model import Notes
from shoestring.errors import UsageError

Turn = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions [..., n] to cosines and sines [..., n, D] that turn a query or key: x cos + (-x_2, x_1) sin, x_1 and x_2 its halves."""


class AttentionSizes(NamedTuple):
    """Of the attention of one layer. width: of the hidden states. heads: of queries. key_value_heads: of keys and values."""

    width: int
    heads: int
    key_value_heads: int


class AttentionRule(nn.Module, abc.ABC):
    """In place of attention to all tokens before. Queries, keys and values are the layer's own, turned by their positions.

    Its parameters lie in the layer, and train with it. What it hears is forgotten once it was used, so that a model can be copied.

    tells: whether it tells notes of a pass without a cache, such as a term of the loss.
    fused: whether gradients are those of a fused kernel, which works out the scores once more.
    """

    tells = False
    fused = True

    def hear(self, x: Tensor) -> None:
        """The hidden states [B, T, width] that the queries, keys and values of the coming call are made of."""

    @abc.abstractmethod
    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Attention of whole texts: [B, H, T, D] from queries [B, H, T, D], keys and values [B, Hk, T, D].

        scale: of the scores; None: one over the square root of the width of a key.
        visible: bool, broadcastable to [B, 1, T, T], which a token may see at most; None: itself and those before it.
        """

    @abc.abstractmethod
    def new_layer(self) -> "RuledLayer":
        """The empty state of the layer, for one text."""

    def new_cache(self, rows: int) -> "RuledLayer":
        """As `new_layer`. Raises: UsageError for more rows than one."""
        if rows != 1:
            raise UsageError(f"layers with a {type(self).__name__} read one text at a time, and not {rows}")
        return self.new_layer()

    def told(self) -> Notes:
        """Notes of the last pass, where it `tells`."""
        return {}

    def pairs(self, shape: Shape, sizes: AttentionSizes) -> int:
        """Pairs of a query and a key that all heads score in a row of this pass: the most it can be."""
        return sizes.heads * shape.new * (shape.past + shape.new)

    def attention_flops(self, shape: Shape, sizes: AttentionSizes, key: int, value: int, inside: bool) -> int:
        """Operations of attention, in the convention of `contract.cost`; those with matrices of its own are not among them.

        key, value: widths of a head. inside: whether queries, keys and values take gradients.
        """
        square = 2 * shape.rows * self.pairs(shape, sizes)
        total = square * (key + value)
        if shape.backward and inside:
            total += square * (2 * key + 2 * value + (key if self.fused else 0))
        elif shape.backward and trains(self):
            total += square * value  # of the scores alone
        return total

    def matrices_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        """Operations of matrices of its own."""
        products = 1 + (int(trains(self)) + int(inputs) if backward else 0)
        return products * 2 * tokens * sum(p.numel() for p in self.parameters() if p.ndim == 2)


class RuledLayer(abc.ABC):
    """What one layer holds of one text. Tensors are never changed in place: a snapshot keeps them, and copies share them."""

    rewindable = False
    first = 0
    """Tokens of the text that were read before the pass."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes that are held."""

    @abc.abstractmethod
    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`."""

    def begin(self, coming: Any) -> None:
        """Make ready for a pass. Raises: UsageError for more than one text, for padding and for a tree of drafts."""
        if not isinstance(coming, Pass) or coming.mask is not None or len(coming.new) > 1 or not coming.uniform:
            raise UsageError("a layer that drops tokens by a rule reads one text, token by token in order")
        self.first = coming.held[0]

    def crop(self, lengths: Sequence[int]) -> None:
        raise UsageError("what a layer with a rule of attention dropped does not come back: restore a snapshot")

    def take(self, rows: Tensor) -> Self:
        if rows.tolist() != [0]:
            raise UsageError("a layer with a rule of attention holds one text")
        return copy.copy(self)

    def snapshot(self) -> Any:
        return dict(vars(self))

    def restore(self, snapshot: Any) -> None:
        vars(self).update(snapshot)


class Ruled(abc.ABC):
    """An anatomy whose layers can have rules."""

    @abc.abstractmethod
    def attention_sizes(self) -> list[AttentionSizes]:
        """Of each layer. Raises: UsageError where a layer has no attention that a rule can take the place of."""

    @abc.abstractmethod
    def set_rules(self, rules: Mapping[int, AttentionRule | None]) -> None:
        """Have layers of these numbers attend by a rule, or as they did before (None)."""

    @abc.abstractmethod
    def rules(self) -> list[AttentionRule | None]:
        """Of each layer."""

    @abc.abstractmethod
    def turn(self) -> Turn:
        """What turns queries and keys. Raises: UsageError for a model whose positions are told otherwise."""

    @abc.abstractmethod
    def extend_context(self, context: int, theta: float | None) -> None:
        """Let the model read texts of `context` tokens. theta: of its rotary positions; None: as it is.

        Raises: UsageError for a model whose positions are told otherwise.
        """


def ruled(model: Any, edit: str) -> Ruled:
    """The anatomy of a model, for an edit that sets rules. Raises: UsageError for a model that has no place for any."""
    anatomy = model.anatomy()
    if not isinstance(anatomy, Ruled):
        raise UsageError(f"{edit}: the layers of this model are not known to attend by a rule")
    return anatomy


def whole_scores(
    queries: Tensor, keys: Tensor, scale: float | None, added: Tensor, visible: Tensor | None = None
) -> Tensor:
    """Attention [B, Hk, G, T, S] in float32, with `added` [B or 1, Hk or 1, T, S] to the scores. visible: [B or 1, 1, T, S]."""
    scale = queries.shape[3] ** -0.5 if scale is None else scale
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    scores = (grouped @ keys[:, :, None].mT).float() * scale + added[:, :, None]
    if visible is not None:
        scores = scores.masked_fill(~visible[:, :, None], -torch.inf)
    found: Tensor = scores.softmax(-1)
    return found
