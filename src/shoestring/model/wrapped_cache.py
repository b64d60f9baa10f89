"""A `Cache` as the layers of transformers see it: one object a layer, which takes in keys and values."""

from collections.abc import Callable
from functools import cache as once
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from shoestring.contract.cache import Cache, KeyValues, Pass
from shoestring.errors import UsageError

if TYPE_CHECKING:
    import transformers


class Kept(NamedTuple):
    """What a layer keeps of a token: a key and a value of each head."""

    heads: int
    key_width: int
    value_width: int


class Recorder:
    """Notes what a layer would keep, and keeps nothing."""

    held = 0

    def __init__(self) -> None:
        self.kept: Kept | None = None

    def take(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.kept = Kept(keys.shape[1], keys.shape[3], values.shape[3])
        return keys, values


class Appender:
    """Hands keys and values to a layer of ours, whose mask must be the one that the whole pass was given."""

    def __init__(self, layer: KeyValues, coming: Pass) -> None:
        self.layer, self.coming, self.held = layer, coming, coming.longest

    def take(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        keys, values, mask = self.layer.append(keys, values)
        given = self.coming.visible
        same = keys.shape[2] == self.held + self.coming.length and (mask is None) == (given is None)
        if not same or (mask is not None and given is not None and not _same(mask, given)):
            raise UsageError(
                f"{type(self.layer).__name__} hides tokens in a way of its own, layer by layer: a wrapped model cannot read with it"
            )
        return keys, values


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


@once
def _layer_class() -> type:
    """The layer that transformers sees. Made when it is first needed, as the import takes seconds."""
    from transformers.cache_utils import CacheLayerMixin

    class Layer(CacheLayerMixin):
        """Passes on to a `Recorder` or an `Appender`."""

        is_sliding = False

        def __init__(self, taker: Recorder | Appender) -> None:
            super().__init__()
            self.taker, self.is_initialized = taker, True

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """Nothing to do: the taker has its memory."""

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return self.taker.take(key_states, value_states)

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.taker.held + int(query_length), 0

        def get_seq_length(self) -> int:
            return self.taker.held

        def get_max_length(self) -> int:
            return -1

        get_max_cache_shape = get_max_length  # its name before transformers 5.20

    return Layer


def _seen(takers: list[Any]) -> "transformers.Cache":
    from transformers import Cache as Theirs

    layer = _layer_class()
    return Theirs(layers=[layer(taker) for taker in takers])


def view_of(cache: Cache, coming: Pass) -> "transformers.Cache":
    """What a model of transformers is given for `cache` in the pass `coming`."""
    return _seen([Appender(layer, coming) for layer in cache.layers])


def kept_of(layers: int, run: Callable[["transformers.Cache"], object]) -> list[Kept | None]:
    """What each layer keeps of a token in a pass that `run` makes with the given cache; None where it keeps nothing so."""
    recorders = [Recorder() for _ in range(layers)]
    run(_seen(recorders))
    return [recorder.kept for recorder in recorders]
