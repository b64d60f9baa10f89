"""Any causal language model of transformers as a `LanguageModel`, without a bridge: its own code computes."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from shoestring.contract.attention_rule import AttentionRule
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Attending, Cache, KeptShape, PackedPass, Pass, Thinning
from shoestring.contract.cost import Cost, Shape, bytes_of, ragged, trains
from shoestring.contract.model import About, Depth, Head, Notes, Reading, add_notes, tapping
from shoestring.errors import UsageError
from shoestring.model.cache import ContiguousLayer
from shoestring.model.wrapped_anatomy import Stock, WrappedAnatomy
from shoestring.model.wrapped_cache import addable, kept_of, masks_differ, viewed
from shoestring.model.wrapped_cost import layer_flops, refuse_unknown
from shoestring.model.wrapped_head import head_of
from shoestring.model.wrapped_rules import rule_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATIONS = ("eager", "sdpa")
"""The ways of attention, in the words of transformers, that take a mask of any kind."""

LAST_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""What transformers calls the norm behind the last layer."""

KINDS = ("full_attention", "sliding_attention")
"""The types of layer whose mask is known here."""


class Wrapped(Stock):
    """An `AutoModelForCausalLM` as it is, behind the interface of every model.

    It is always in evaluation mode, in training too: what a run computes is the same on every resumption, so there is no
    dropout. A tied matrix is once in its state.

    stock: the model. Its weights are shared, not copied.
    context: the most tokens of a sequence. None: what the model's configuration says.
    Raises: UsageError for a model with an encoder, with layers whose masks or costs are not known, or whose context is not.
    """

    def __init__(self, stock: "PreTrainedModel", context: int | None = None) -> None:
        super().__init__()
        self.stock = stock
        config: Any = stock.config.get_text_config()
        name = stock.config.model_type
        if stock.config.is_encoder_decoder or stock.base_model is stock:
            raise UsageError(f"a {name} model is no decoder with a head on top")
        if config._attn_implementation not in IMPLEMENTATIONS:
            raise UsageError(
                f"attention by '{config._attn_implementation}' takes no mask of ours: load the model with "
                f"attn_implementation='sdpa', or 'eager'"
            )
        self.kinds: list[str] = list(getattr(config, "layer_types", None) or [])
        if others := sorted(set(self.kinds) - set(KINDS)):
            raise UsageError(f"a {name} model has layers of the type '{others[0]}', whose masks are not known here")
        context = context or getattr(config, "max_position_embeddings", None)
        if not context:
            raise UsageError(f"the configuration of this {name} model names no context: give one")
        self.config, self.context = config, int(context)
        self.window: int | None = getattr(config, "sliding_window", None)
        refuse_unknown(self, [self.get_submodule(layer) for layer in self.layers()], config)
        self.register_state_dict_post_hook(_drop_tied)
        self.register_load_state_dict_pre_hook(_add_tied)
        self.eval()

    @property
    def backbone(self) -> nn.Module:
        """The model without its head."""
        found: nn.Module = self.stock.base_model
        return found

    def layers(self) -> list[str]:
        """The names of the decoder layers, in order, as `named_modules` and a tap have them."""
        for name, module in self.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.config.num_hidden_layers:
                return [f"{name}.{index}" for index in range(len(module))]
        raise UsageError(f"no list of {self.config.num_hidden_layers} layers is in this {self.config.model_type} model")

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.stock.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> Any:
        """The module that turns hidden states into logits, before whatever the model does to them."""
        return self.stock.get_output_embeddings()

    @property
    def about(self) -> About:
        """Its sizes."""
        config = self.config
        return About(config.vocab_size, self.context, config.hidden_size, config.num_hidden_layers)

    def anatomy(self) -> WrappedAnatomy:
        """Its parts, as surgery sees them."""
        return WrappedAnatomy(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the cache."""
        found: torch.dtype = self.get_input_embeddings().weight.dtype  # type: ignore[assignment]
        return found

    @property
    def device(self) -> torch.device:
        """Where token ids are wanted."""
        found: torch.device = self.get_input_embeddings().weight.device  # type: ignore[assignment]
        return found

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, as the class says."""
        return super().train(False)

    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """Read token ids with the model's own layers. tap: names of modules, those of `layers()` among them.

        Raises: UsageError when the tokens do not fit, for an unknown tap, for a depth, and for a cache that hides tokens in a
        way of its own, where layers see a window of the context only.
        """
        if depth is not None:
            raise UsageError(
                "the layers of a wrapped model cannot be skipped one by one: only a native model has a depth"
            )
        if inputs.values.ndim != 2:
            raise UsageError("a wrapped model reads token ids, [B, T]")
        if isinstance(cache, Thinning):
            raise UsageError(
                "each layer of a wrapped model takes all tokens: only a native model has tokens leave between layers"
            )
        coming = None if cache is None else cache.begin(inputs)
        end = inputs.length if coming is None else coming.end
        if end > self.context:
            raise UsageError(f"{end} tokens do not fit in a context of {self.context}")
        packed = isinstance(coming, PackedPass)  # its layers know who sees whom
        visible = None if packed else _visible(inputs) if coming is None else coming.visible
        given: dict[str, Any] = {"input_ids": inputs.values, "attention_mask": self._mask(visible, inputs, coming)}
        positions = inputs.positions
        if positions is None and coming is not None:
            positions = coming.positions.clamp_max(self.context - 1)
        if positions is not None:
            given["position_ids"] = positions
        with tapping(self, tap) as tapped:
            if cache is None or coming is None:
                hidden = self._run(**given, use_cache=False)
            else:
                self._refuse_windows(cache)
                with viewed(cache, coming, self.config) as theirs:
                    hidden = self._run(**given, past_key_values=theirs, use_cache=True)
                cache.advance()
        return Reading(hidden, self._head, self._pass_cost(inputs, coming), self._told(cache), tapped)

    def _told(self, cache: Cache | None) -> Notes:
        """What rules of attention tell of a pass."""
        notes: Notes = {}
        for number, rule in enumerate(self._rules if cache is None else ()):
            if rule is not None and rule.tells:
                add_notes(notes, rule.told(), f"layers.{number}")
        return notes

    def _pass_cost(self, inputs: Inputs, coming: Pass | PackedPass | None) -> Cost:
        """What a pass costs, its head's products not among it."""
        if isinstance(coming, PackedPass):
            return ragged(self._body_cost, ((one.new, one.held) for one in coming.segments))
        return self._body_cost(Shape(inputs.rows, inputs.length, 0 if coming is None else coming.longest))

    def _run(self, **given: Any) -> Tensor:
        if unknown := sorted(set(given) - self._takes):
            raise UsageError(f"a {self.config.model_type} model takes no {unknown[0]}, which this pass needs")
        hidden: Tensor = self.backbone(**given, return_dict=True).last_hidden_state
        return hidden

    @cached_property
    def _takes(self) -> set[str]:
        """What the backbone can be given."""
        return set(inspect.signature(self.backbone.forward).parameters)

    def _mask(self, visible: Tensor | None, inputs: Inputs, coming: Pass | PackedPass | None) -> Any:
        """The mask as the backbone wants it; None where what it makes itself is the same."""
        if visible is None:
            return None
        windowed = visible
        if self.window is not None and self.windowed:
            keys = torch.arange(visible.shape[-1], device=visible.device)
            queries = (
                coming.positions if coming is not None else torch.arange(inputs.length, device=visible.device)[None]
            )
            windowed = visible & (keys > queries[:, :, None] - self.window)[:, None]
        masks = {KINDS[0]: self._addable(visible), KINDS[1]: self._addable(windowed)}
        if len(set(self.kinds)) > 1:
            return masks
        sliding = self.kinds[0] == KINDS[1] if self.kinds else self.window is not None
        return masks[KINDS[1]] if sliding else masks[KINDS[0]]

    def _addable(self, visible: Tensor) -> Tensor:
        """The mask in the type that the model's way of attention takes."""
        return visible if self.config._attn_implementation == "sdpa" else addable(visible, self.dtype)

    @property
    def windowed(self) -> bool:
        """Whether some layer sees only so many of the latest tokens."""
        return self.window is not None and self.window < self.context and (not self.kinds or KINDS[1] in self.kinds)

    def _refuse_windows(self, cache: Cache) -> None:
        attending = all(isinstance(layer, Attending) for layer in cache.layers)
        if masks_differ(cache) and not attending and self.windowed:
            raise UsageError(
                f"layers of this {self.config.model_type} model see {self.window} tokens only: they read with a plain cache"
            )

    def leaving(self, stream: Tensor) -> Tensor:
        """As `contract.model.Exits.leaving`. Raises: UsageError where the model's last norm has no name that is known."""
        norm = next((name for name in LAST_NORMS if isinstance(getattr(self.backbone, name, None), nn.Module)), None)
        if norm is None:
            raise UsageError(
                f"this {self.config.model_type} model has no last norm by a name that is known: {', '.join(LAST_NORMS)}"
            )
        hidden: Tensor = self.backbone.get_submodule(norm)(stream)
        return hidden

    @cached_property
    def _head(self) -> Head:
        return head_of(self.stock)

    def new_cache(self, rows: int, room: int) -> Cache:
        """An empty cache for `rows` sequences of up to `room` tokens, of the model's type and device.

        Raises: UsageError where a layer keeps something other than keys and values of its own.
        """

        def layer(kept: KeptShape, rule: AttentionRule | None) -> Any:
            if rule is not None:
                return rule.new_cache(rows)
            keys = torch.zeros(rows, kept.heads, room, kept.key_width, dtype=self.dtype, device=self.device)
            values = torch.zeros(rows, kept.heads, room, kept.value_width, dtype=self.dtype, device=self.device)
            return ContiguousLayer(keys, values)

        for number, kept in enumerate(self._kept):
            if kept is None:
                raise UsageError(
                    f"layer {number} of this {self.config.model_type} model keeps no keys and values of its own"
                )
        return Cache([layer(*both) for both in zip(self._kept, self._rules, strict=True) if both[0]], rows, room)  # type: ignore[arg-type]

    @cached_property
    def _rules(self) -> list[AttentionRule | None]:
        """By which the layers attend, of each that does so."""
        return [rule_of(self.get_submodule(name)) for name in self.layers()]

    @cached_property
    def _kept(self) -> list[KeptShape | None]:
        """What each layer keeps of a token: the model is asked, by a pass over one."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            return kept_of(
                self.config.num_hidden_layers,
                lambda cache: self._run(input_ids=token, past_key_values=cache, use_cache=True),
            )

    def cost(self, shape: Shape) -> Cost:
        """What a pass of this shape costs, its head and backward pass included."""
        weight = self.get_output_embeddings().weight
        # a trained gain of the last norm needs no gradient below it, but takes one from above
        inside = shape.backward and trains(self.backbone)
        products = 1 + (shape.backward and weight.requires_grad) + inside
        return self._body_cost(shape).beside(Cost(products * 2 * shape.head_places * weight.numel()))

    def _body_cost(self, shape: Shape) -> Cost:
        """As `cost`, without the head's products."""
        inputs, flops = shape.backward and self._trains_before_layers, 0
        for (layer, count), kept in zip(self._runs, self._run_kept, strict=True):
            inside = inputs or (shape.backward and trains(layer))
            flops += layer_flops(layer, self.config, kept, shape, inputs)
            if count > 1:
                flops += (count - 1) * layer_flops(layer, self.config, kept, shape, inside)
            inputs = inside
        weights, token = self._weight_bytes, self._cache_bytes
        held = shape.rows * (shape.past + shape.new) * token
        return Cost(flops, weights + shape.rows * shape.past * token, weights + held)

    @cached_property
    def _runs(self) -> list[tuple[nn.Module, int]]:
        """The layers, as runs of equal ones: (the first, how many)."""
        return [(self.get_submodule(self.layers()[first]), count) for first, count in self._equal]

    @cached_property
    def _run_kept(self) -> list[KeptShape | None]:
        return [self._kept[first] for first, _ in self._equal]

    @cached_property
    def _equal(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        before: object = None
        for number, name in enumerate(self.layers()):
            layer = self.get_submodule(name)
            kind = f"{layer} {[p.requires_grad for p in layer.parameters()]}", self._kept[number]
            if kind == before:
                runs[-1] = runs[-1][0], runs[-1][1] + 1
            else:
                runs.append((number, 1))
            before = kind
        return runs

    @cached_property
    def _trains_before_layers(self) -> bool:
        """Whether anything trains that the first layer's input depends on: the embeddings of tokens and of positions."""
        return any(trains(module) for module in self.backbone.modules() if isinstance(module, nn.Embedding))

    @cached_property
    def _weight_bytes(self) -> int:
        return bytes_of(self)

    @cached_property
    def _cache_bytes(self) -> int:
        """Bytes that a cache holds of one token."""
        kept = [one.heads * (one.key_width + one.value_width) for one in self._kept if one is not None]
        return sum(kept) * self.dtype.itemsize


def _visible(inputs: Inputs) -> Tensor | None:
    """Which places see which, [B or 1, 1, T, T] bool, without a cache; None: itself and those before it."""
    mask, documents, length = inputs.mask, inputs.documents, inputs.length
    if mask is None and documents is None and inputs.positions is None:
        return None
    # given positions alone, transformers would take a step back for the start of another document
    if mask is None:
        mask = torch.ones(1, length, length, dtype=torch.bool, device=inputs.values.device).tril()
    if documents is not None:
        mask = mask & (documents[:, :, None] == documents[:, None, :])
    return mask[:, None]


def _tied(module: nn.Module) -> dict[str, str]:
    """Of each parameter that is there under a second name: (second name, first name)."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    both = module.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in both if first[id(parameter)] != name}


def _drop_tied(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for name in _tied(module):
        state.pop(prefix + name, None)


def _add_tied(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for name, first in _tied(module).items():
        if prefix + first in state:
            state[prefix + name] = state[prefix + first]
