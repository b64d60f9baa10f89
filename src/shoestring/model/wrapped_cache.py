"""A `Cache` as the layers of transformers see it: one object a layer, which takes in keys and values."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache as once
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shoestring.contract.cache import Attending, Cache, KeptShape, KeyValues, PackedPass, Pass
from shoestring.errors import UsageError
from shoestring.model.cache import ContiguousLayer

if TYPE_CHECKING:
    import transformers


class Recorder:
    """Notes what a layer would keep, and keeps nothing."""

    held = 0

    def __init__(self) -> None:
        self.kept: KeptShape | None = None

    def take(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.kept = KeptShape(keys.shape[1], keys.shape[3], values.shape[3])
        return keys, values


class Appender:
    """Hands keys and values to a layer of ours, and holds the mask that it answers with. A layer that attends itself is given them
    with the queries."""

    def __init__(self, layer: KeyValues | Attending, coming: Pass | PackedPass) -> None:
        self.layer, self.held = layer, coming.longest
        self.mask: Tensor | None = None

    def take(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(self.layer, Attending):
            keys, values, self.mask = self.layer.append(keys, values)
        return keys, values


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


def _seen(takers: Sequence[Recorder | Appender]) -> "transformers.Cache":
    from transformers import Cache as Theirs

    layer = _layer_class()
    return Theirs(layers=[layer(taker) for taker in takers])


def kept_of(layers: int, run: Callable[["transformers.Cache"], object]) -> list[KeptShape | None]:
    """What each layer keeps of a token in a pass that `run` makes with the given cache; None where it keeps nothing so."""
    recorders = [Recorder() for _ in range(layers)]
    run(_seen(recorders))
    return [recorder.kept for recorder in recorders]


def masks_differ(cache: Cache) -> bool:
    """Whether some layer may answer with a mask other than `Pass.visible`, of its own choice."""
    return any(type(layer) is not ContiguousLayer for layer in cache.layers)


@contextmanager
def viewed(cache: Cache, coming: Pass | PackedPass, config: Any) -> Iterator["transformers.Cache"]:
    """What a model of transformers is given for `cache` in the pass `coming`, for the time of the block.

    Where `masks_differ`, each layer attends by the mask that its own part of the cache answers with, and not by the one that
    the model is given. config: of the model.
    """
    appenders = [Appender(layer, coming) for layer in cache.layers]
    if not masks_differ(cache):
        yield _seen(appenders)
        return
    before = config._attn_implementation
    _register()
    token = _reading.set((appenders, before))
    config._attn_implementation = OWN
    try:
        yield _seen(appenders)
    finally:
        config._attn_implementation = before
        _reading.reset(token)


OWN = "shoestring_own_masks"
"""The name of `_attend` among the attention functions of transformers."""

_reading: ContextVar[tuple[list[Appender], str]] = ContextVar("reading")
"""The layers of the pass that is being computed, and the way of attention that the model has otherwise."""


@once
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(OWN, _attend)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, **more: Any) -> Any:
    """Attention of one layer by the mask of its own part of the cache."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = attend_by_cache(module, query, key, value, more)
    if found is not None:
        return found.transpose(1, 2), None
    appenders, way = _reading.get()
    mask = appenders[module.layer_idx].mask
    if mask is not None and mask.shape[1] not in (1, query.shape[1]):  # of each key head
        mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], 1)
    if way == "sdpa":
        return ALL_ATTENTION_FUNCTIONS[way](module, query, key, value, mask, **more)
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, None if mask is None else addable(mask, query.dtype), **more)


def attend_by_cache(module: Any, query: Tensor, key: Tensor, value: Tensor, more: Mapping[str, Any]) -> Tensor | None:
    """[B, H, T, D] from the layer's part of the cache that is being read with, where that attends itself; else None."""
    reading = _reading.get(None)
    layer = None if reading is None else reading[0][module.layer_idx].layer
    if not isinstance(layer, Attending):
        return None
    if more.get("softcap") is not None:
        raise UsageError("scores of this model are capped, which a cache that attends itself does not know")
    return layer.attend(query, key, value, scale=more.get("scaling"), window=more.get("sliding_window"))


def addable(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to scores: 0 where `visible` is True, the least number elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)
