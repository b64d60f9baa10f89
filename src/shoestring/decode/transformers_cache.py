"""Caches that evict, or hold fewer bits, for the `generate` of transformers itself: `past_key_values=cache(model, ...)`."""

import math
import weakref
from functools import cache as once
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.contract.cache import KeptShape
from shoestring.decode.cache_budget import amount_of, limit_of
from shoestring.decode.cache_policy import CachePolicy, attention_of
from shoestring.decode.cache_store import CacheStore, place_bytes
from shoestring.decode.eviction import Eviction, Limit
from shoestring.decode.text_cache import TextStore
from shoestring.errors import UsageError

if TYPE_CHECKING:
    import transformers


def cache(
    model: Any,
    policy: str | None = None,
    *,
    budget: str = "100%",
    store: str = "plain",
    stride: int = 0,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> "transformers.Cache":
    """An empty cache for one call of `model.generate(..., past_key_values=...)`, or for passes of your own.

    model: of transformers, with a configuration of full attention. policy: by name, as 'keydiff'; None: all tokens stay.
    budget: bytes of all rows, as '64MiB'; or a share of the prompt, as '25%'. The prompt is read whole and then cut to it.
    store: 'plain', 'int8' or 'int4'. stride: tokens that may be written before places are given up again; 0: a quarter of what
    stays, or 128. attention_mask: [B, T] of the prompts, where the batch is padded on the left: padding is given up first.
    options: of the policy.
    Raises: UsageError for what does not fit together, and for models with windows: the engine has those.
    """
    config = model.config.get_text_config()
    windows = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if windows else "full_attention"])
    if kinds != {"full_attention"}:
        raise UsageError("some layers of this model see a window only, which a cut cache would shift: use the engine")
    made: CachePolicy | None = (
        None if policy is None else Choice.of("decode", policy, kind="cache policy", **options).build()
    )
    held = Choice.of("decode", store, kind="cache store").build()
    if made is None and options:
        raise UsageError(f"'{next(iter(options))}' is an option of a policy, and none is named")
    share, most = amount_of(budget)
    if made is None and budget != "100%":
        raise UsageError("a budget needs a policy that says what stays: name one, as 'keydiff'")
    if stride < 0:
        raise UsageError(f"a stride of {stride} places cannot be given up")
    if isinstance(held, TextStore) or held.elsewhere(held.empty(1, 1, 8, torch.zeros(1))):
        raise UsageError(f"transformers keeps keys and values in memory: take 'plain', 'int8' or 'int4', not '{store}'")
    shared = _Shared(made, held, share, most, stride, attention_mask, config.num_hidden_layers)
    found: transformers.Cache = _cache_class()(shared)
    if made is not None and (made.figures or made.window):
        _watch(config, found)
    return found


class _Shared:
    """What the layers of a cache have in common. What depends on shapes is settled at the first pass."""

    def __init__(
        self,
        policy: CachePolicy | None,
        store: CacheStore,
        share: float | None,
        most: float,
        stride: int,
        mask: Tensor | None,
        layers: int,
    ) -> None:
        self.policy, self.store, self.layers = policy, store, layers
        self._share, self._most, self._stride = share, most, stride
        self.mask = mask
        self.shape: KeptShape | None = None
        self.limit: Limit | None = None
        self.eviction: Eviction | None = None
        self.padding: list[int] = []
        """Of each row, places before its first token."""

    def settle(self, keys: Tensor, values: Tensor) -> None:
        """At the first tokens of a layer. Raises: UsageError where the budget holds nothing, or layers differ."""
        rows, heads, prompt, width = keys.shape
        shape = KeptShape(heads, width, values.shape[3])
        if self.shape is not None:
            if shape != self.shape:
                raise UsageError("layers of this model keep keys of different shapes: use the engine")
            return
        self.shape, shapes = shape, [shape] * self.layers
        self.padding = [0] * rows
        if self.mask is not None:
            if self.mask.shape != (rows, prompt) or (self.mask.diff(dim=1) < 0).any():
                raise UsageError(f"attention_mask is [{rows}, {prompt}], its zeros before its ones: pad on the left")
            self.padding = (self.mask == 0).sum(1).tolist()
        if self.policy is None:
            return
        self.eviction = Eviction(self.policy, shapes)
        for row in range(rows):
            self.eviction.begin(row, keys.device)
        if self._share is None:
            each = sum(place_bytes(self.store, shapes, keys)) + 4 * self.layers * heads * (1 + self.policy.figures)
            places = int(self._most / (rows * each))
            if places < 2:
                raise UsageError(
                    f"the budget holds {places} tokens of {rows} rows: {2 * rows * each} bytes would hold two"
                )
            self.limit = limit_of(places, self._stride, True, 1)
        else:
            stays = max(1, math.ceil(prompt * self._share - 1e-9))
            stride = self._stride or min(128, max(1, stays // 4))
            self.limit = Limit(stays + stride, stride, True)


@once
def _cache_class() -> type:
    """Made when it is first needed, as the import takes seconds."""
    from transformers import Cache
    from transformers.cache_utils import CacheLayerMixin

    class Layer(CacheLayerMixin):
        """The codes of keys and values of all rows in one layer, [B, S, Hk, ...], and the position of each, [B, Hk, S]."""

        is_sliding = False

        def __init__(self, number: int, shared: _Shared) -> None:
            super().__init__()
            self.number, self.shared, self.seen = number, shared, 0
            self.sides: list[list[Tensor]] = [[], []]
            self.positions: Tensor | None = None
            self.prompt = 0

        @property
        def held(self) -> int:
            return self.sides[0][0].shape[1] if self.sides[0] else 0

        @property
        def nbytes(self) -> int:
            codes = [*self.sides[0], *self.sides[1], *([] if self.positions is None else [self.positions])]
            return sum(one.nbytes for one in codes)

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            self.shared.settle(key_states, value_states)
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            for side, new in zip(self.sides, (key_states, value_states), strict=True):
                codes = self.shared.store.encode(new.transpose(1, 2).flatten(0, 1))
                added = [one.unflatten(0, (len(new), -1)) for one in codes]
                side[:] = [torch.cat((old, one), 1) for old, one in zip(side, added, strict=True)] if side else added
            heads, new_tokens = key_states.shape[1:3]
            if self.shared.eviction is not None:
                padding = torch.tensor(self.shared.padding, device=key_states.device)
                places = torch.arange(self.seen, self.seen + new_tokens, device=key_states.device) - padding[:, None]
                own = places[:, None].expand(-1, heads, -1).to(torch.int32)
                self.positions = own if self.positions is None else torch.cat((self.positions, own), 2)
            self.prompt = self.prompt or new_tokens
            self.seen += new_tokens
            keys, values = (
                self._decoded(side, like) for side, like in zip(self.sides, (key_states, value_states), strict=True)
            )
            if self.shared.eviction is not None and not self.shared.eviction.watches:
                self._cut(keys, values)
            return keys, values

        def watched(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> None:
            """The queries [B, H, n, D] of the new tokens, once these have been attended to."""
            eviction = self.shared.eviction
            assert eviction is not None
            assert self.positions is not None
            scale = queries.shape[3] ** -0.5 if scale is None else scale
            for row, pad in enumerate(self.shared.padding):
                real = self._real(row)
                new = min(queries.shape[2], self.seen - pad)
                first = self.seen - pad - new
                own = self.positions[row, :, real:].long()
                asked, held = queries[row, :, -new:], keys[row, :, real:]
                look = partial(attention_of, asked, held, scale, own, first + new)
                eviction.read(row, self.number, asked, held.shape[1], first, scale, None, look)
            self._cut(keys, values)

        def _real(self, row: int) -> int:
            """The first place of a row that is no padding: it is before all others, and goes first."""
            return max(0, self.shared.padding[row] - (self.seen - self.held))

        def _cut(self, keys: Tensor, values: Tensor) -> None:
            limit, eviction = self.shared.limit, self.shared.eviction
            if limit is None or eviction is None or not limit.due(self.held, self.seen, self.prompt):
                return
            assert self.positions is not None
            chosen, held = list[Tensor](), self.held
            for row, pad in enumerate(self.shared.padding):
                real, positions = self._real(row), self.positions[row].long()
                count = min(limit.kept, held - real)
                given = keys[row, :, real:], values[row, :, real:], positions[:, real:], self.seen - pad
                stays = eviction.choose(row, self.number, *given, count) + real
                before = torch.arange(real - (limit.kept - count), real, device=keys.device)
                chosen.append(torch.cat((before.expand(len(stays), -1), stays), 1))
            at = torch.stack(chosen)  # [B, Hk, kept]
            self.positions = self.positions.gather(2, at)
            rows = torch.arange(len(at), device=keys.device)[:, None, None]
            heads = torch.arange(at.shape[1], device=keys.device)[:, None]
            for side in self.sides:
                side[:] = [one[rows, at, heads].transpose(1, 2).contiguous() for one in side]

        def _decoded(self, side: list[Tensor], like: Tensor) -> Tensor:
            found = self.shared.store.decode([one.flatten(0, 1) for one in side], like)
            return found.unflatten(0, (len(like), -1)).transpose(1, 2)

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.held + int(query_length), self.seen - self.held

        def get_seq_length(self) -> int:
            return self.seen

        def get_max_length(self) -> int:
            return -1

        get_max_cache_shape = get_max_length  # its name before transformers 5.20

        def reset(self) -> None:
            raise UsageError("a cache that was cut is not read again: make a new one with shoestring.cache")

        def reorder_cache(self, beam_idx: Tensor) -> None:
            raise UsageError("a cache that is cut follows one answer a row: leave beams out")

        batch_repeat_interleave = batch_select_indices = crop = reorder_cache

    class Bounded(Cache):
        """Keys and values of a batch, within a budget."""

        def __init__(self, shared: _Shared) -> None:
            super().__init__(layers=[Layer(number, shared) for number in range(shared.layers)])
            self.shared = shared

        @property
        def nbytes(self) -> int:
            """Bytes that are held now."""
            noted = 0 if self.shared.eviction is None else self.shared.eviction.nbytes
            return sum(layer.nbytes for layer in self.layers) + noted

    return Bounded


WATCHED = "shoestring_watched"
"""The name of `_attend` among the attention functions of transformers."""

_watching: dict[int, tuple[Any, str]] = {}
"""By the identity of a model's configuration: (a weak reference to its latest cache that wants queries, the model's own way of
attention)."""


def _watch(config: Any, made: Any) -> None:
    """Have the attention of a model show its queries to a cache, for as long as this lives.

    Raises: UsageError for ways of attention that take no function.
    """
    way = config._attn_implementation
    if way == WATCHED:
        way = _watching[id(config)][1]
    if way not in ("sdpa", "eager"):
        raise UsageError(f"attention by '{way}' shows no queries: load the model with attn_implementation='sdpa'")
    _register()
    _watching[id(config)] = weakref.ref(made), way
    config._attn_implementation = WATCHED

    def back() -> None:
        holder = _watching.get(id(config))
        if holder is not None and holder[0]() is None:
            config._attn_implementation = way
            del _watching[id(config)]

    weakref.finalize(made, back)


@once
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(WATCHED, _attend)
    AttentionMaskInterface.register(WATCHED, sdpa_mask)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any) -> Any:
    """Attention by torch's function, after which the cache is shown the queries."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    holder = _watching.get(id(module.config))
    made = None if holder is None else holder[0]()
    if made is not None and made.layers[module.layer_idx].held == key.shape[2]:  # not of a pass without it
        made.layers[module.layer_idx].watched(query, key, value, more.get("scaling"))
    return found
