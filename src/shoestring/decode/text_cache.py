"""Caches that hold one text, and change how they hold it as it goes on."""

import copy
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor

from shoestring.contract.cache import Cache
from shoestring.contract.model import LanguageModel
from shoestring.errors import UsageError


class TextCache(Cache):
    """The cache of one text. What a layer holds is put in another form where the text allows it, and not before: so what is
    computed
    does not depend on the passes in which the text is read."""

    elsewhere = 0
    """Bytes that are not in the memory of the model's device."""

    def allowed(self, prompt: int) -> int:
        """Tokens that may be read before `settle` is due, at least 1. prompt: tokens of the prompt."""
        raise UsageError("a cache of one text says when it settles")

    def settle(self, prompt: int) -> None:
        """Put what was read in its other form, where it is time."""
        raise UsageError("a cache of one text says how it settles")

    def take(self, rows: Tensor) -> "TextCache":
        """A copy: there is one row."""
        if rows.tolist() != [0]:
            raise UsageError("a cache of one text has one row")
        return copy.deepcopy(self)


SLACK = 16
"""Of what is held, one part in so many is room behind it: a token that comes is written there, and nothing else is copied."""


def longer(held: Tensor | None, more: Tensor) -> Tensor:
    """[1, Hk, S + T, D]: more [1, Hk, T, D] behind what is held, [1, Hk, S, D]. What is held is not changed.

    Where its memory has room behind it, `more` is written there; else all is copied to where there is some.
    """
    if held is None:
        return more.clone()
    heads, size, width = held.shape[1:]
    total = size + more.shape[2]
    room = held.untyped_storage().nbytes() // (held.element_size() * heads * width)
    if held.storage_offset() or held.stride()[1:] != (room * width, width, 1) or room < total:
        whole = held.new_empty(1, heads, total + total // SLACK, width)
        whole[:, :, :size] = held
    else:
        whole = held.as_strided((1, heads, room, width), (heads * room * width, room * width, width, 1))
    whole[:, :, size:total] = more
    return whole[:, :, :total]


class GrowingLayer:
    """Keys and values of one text in one layer, [1, Hk, S, D], with little more room than they take."""

    rewindable = False

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.coming: Any = None

    @property
    def nbytes(self) -> int:
        return sum(one.untyped_storage().nbytes() for one in (self.keys, self.values) if one is not None)

    @property
    def held(self) -> int:
        """S."""
        return 0 if self.keys is None else self.keys.shape[2]

    def begin(self, coming: Any) -> None:
        self.coming = coming

    def grow(self, keys: Tensor, values: Tensor) -> None:
        """Hold these too."""
        self.keys, self.values = longer(self.keys, keys), longer(self.values, values)

    def crop(self, lengths: Any) -> None:
        raise UsageError("what a cache of one text was read into cannot be cut: decode without drafts")

    def take(self, rows: Tensor) -> Self:
        raise UsageError("the layers of a cache of one text go together")

    def snapshot(self) -> Any:
        """What it holds; nothing of it is changed in place, but for room behind it."""
        return dict(vars(self))

    def restore(self, snapshot: Any) -> None:
        vars(self).update(snapshot)


@runtime_checkable
class TextStore(Protocol):
    """Makes caches of one text each: how keys and values are held depends on others of the text, or of other layers."""

    def cache(self, model: LanguageModel, room: int) -> TextCache:
        """An empty one, for up to `room` tokens. Raises: UsageError for a model that does not fit."""
        ...
