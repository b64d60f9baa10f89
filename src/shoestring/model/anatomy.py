"""How surgery sees the native model: each part says which of its weights lie along which axis."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.contract.anatomy import Axis, Matrix, Slice
from shoestring.contract.attention_rule import AttentionRule, AttentionSizes, Ruled, Turn
from shoestring.contract.lending import copied, require_lenders
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import find
from shoestring.model.attention import Attention
from shoestring.model.block import Block, Place
from shoestring.model.config import ModelConfig
from shoestring.model.cut_config import cut_config
from shoestring.model.hidden_token import HiddenToken
from shoestring.model.initialise import initialise
from shoestring.model.layout import Pattern, SpanAt, places
from shoestring.model.ruled_attention import with_rule
from shoestring.model.span import span_of
from shoestring.model.stacked_linear import StackedLinear

KINDS = ("hidden", "head", "key_value_head", "ssm_channel", "ssm_state", "expert", "expert_hidden")
"""Kinds of axes that each layer has one of its own of."""


class Blocks(LanguageModule):
    """A native model as its anatomy sees it: embedding, blocks, norm, head. `Transformer` is one.

    config: of the model as it stands.
    blocks: its layers.
    head: None where the embedding is the head too.
    """

    config: ModelConfig
    embedding: nn.Embedding
    blocks: nn.ModuleList
    head: nn.Linear | None

    @abc.abstractmethod
    def make_rotaries(self) -> None:
        """Make the tables of positions that the layers read, as the configuration has them now."""


class TableRotation:
    """What turns queries and keys of a native model: its tables. A factor on cosines and sines is left out."""

    def __init__(self, rotary: Any) -> None:
        self.rotary = rotary

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        places = positions.abs()
        cos, sin = self.rotary.cos[places, 0].float(), self.rotary.sin[places, 0].float()
        factor = (cos.square() + sin.square()).sqrt()
        first, second = (sin * positions.sign()[..., None]).chunk(2, -1)  # the first carries the minus of the rotation
        return cos / factor, torch.cat((-first, second), -1) / factor


class NativeAnatomy(Ruled):
    """The `Anatomy` of a `Transformer`. A part of a block has a method `axes()`, with names relative to the part."""

    def __init__(self, model: Blocks) -> None:
        self._model = model

    @property
    def model(self) -> Blocks:
        """The model itself."""
        return self._model

    @property
    def layers(self) -> list[str]:
        return [f"blocks.{index}" for index in range(len(self.model.blocks))]

    @property
    def embedding(self) -> str:
        return "embedding"

    @property
    def head(self) -> str | None:
        return None if self.model.head is None else "head"

    def axes(self, kind: str) -> list[Axis]:
        """As `Anatomy.axes`. Kinds: 'layer', 'width', 'vocabulary', and those of the parts."""
        if kind == "layer":
            return [Axis("layer", None, len(self.model.blocks))]
        if kind == "vocabulary":
            names = [name for name in (self.embedding, self.head) if name]
            slices = tuple(Slice(f"{name}.weight", 0) for name in names)
            return [Axis(kind, None, self.model.about.vocabulary, self._with_biases(slices))]
        if kind == "width":
            return [self._width()]
        found = []
        for layer, block in enumerate(self.model.blocks):
            for name, part in block.named_children():
                for axis in _axes(part):
                    if axis.kind == kind:
                        slices = self._with_biases(_under(f"blocks.{layer}.{name}", axis.slices))
                        found.append(replace(axis, layer=layer, slices=slices))
        return found

    def _width(self) -> Axis:
        slices = [Slice("embedding.weight", 1), Slice("norm.weight", 0)]
        if self.model.config.hides:
            slices.append(Slice("hidden_token.vector", 0))
        if self.head:
            slices.append(Slice("head.weight", 1))
        for layer, block in enumerate(self.model.blocks):
            for name, part in block.named_children():
                for axis in _axes(part):
                    if axis.kind == "width":
                        slices += _under(f"blocks.{layer}.{name}", axis.slices)
        return Axis("width", None, self.model.about.width, self._with_biases(tuple(slices)))

    def _with_biases(self, slices: Sequence[Slice]) -> tuple[Slice, ...]:
        """The slices, and those of the biases that go with the rows of a matrix or with a gain."""
        known = dict(self.model.named_parameters())
        found = []
        for one in slices:
            found.append(one)
            bias = one.name.removesuffix("weight") + "bias"
            if one.dim == 0 and one.name.endswith("weight") and bias in known:
                found.append(one._replace(name=bias))
        return tuple(found)

    def matrices(self) -> Iterator[Matrix]:
        """As `Anatomy.matrices`."""
        for layer, block in enumerate(self.model.blocks):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear | StackedLinear):
                    yield Matrix(f"blocks.{layer}.{name}", layer, module.weight)

    def resized(self) -> None:
        """As `Anatomy.resized`. Where layers of which a configuration says the same differ, it has the first one's."""
        model = self.model
        for block in model.blocks:
            for part in block.children():
                own: Any = getattr(part, "resized", None)
                if own is not None:
                    own()
        rows, width = model.embedding.weight.shape
        told: list[Any] = [getattr(block.token_mixer, "own_options", None) for block in model.blocks]
        by_layer: list[dict[str, int]] = [{} for _ in told]
        shared = {axis.layer for axis in self.axes("key_value_head")}  # heads are then those that share keys and values
        for kind, key in (("hidden", "hidden"), ("head", "heads"), ("key_value_head", "key_value_heads")):
            for axis in self.axes(kind):
                apart = kind != "hidden" and (
                    told[axis.layer or 0] is not None or (shared and axis.layer not in shared)
                )
                if axis.layer is not None and not apart:
                    by_layer[axis.layer][key] = axis.size
        options: list[dict[str, Any]] = []
        for block in model.blocks:
            parts: list[tuple[str, Any]] = [(name, getattr(block, name)) for name in ("token_mixer", "channel_mixer")]
            options.append({name: part.own_options() for name, part in parts if hasattr(part, "own_options")})
        model.config = cut_config(model.config, {"vocabulary": rows, "width": width}, by_layer, options)

    def uniform(self) -> bool:
        """Whether all layers have the sizes that the configuration says."""
        if not self.model.config.uniform:
            return False
        return all(len({axis.size for axis in self.axes(kind)}) <= 1 for kind in KINDS)

    def attention_sizes(self) -> list[AttentionSizes]:
        """As `Ruled.attention_sizes`."""
        found = []
        for number, block in enumerate(self.model.blocks):
            mixer: Any = block.token_mixer
            if not isinstance(mixer, Attention):
                raise UsageError(
                    f"layer {number} mixes tokens by a {type(mixer).__name__}, which has no such attention"
                )
            found.append(AttentionSizes(mixer.qkv.in_features, mixer.split[0], mixer.split[1]))
        return found

    def set_rules(self, rules: Mapping[int, AttentionRule | None]) -> None:
        """As `Ruled.set_rules`."""
        for number, rule in rules.items():
            with_rule(self.model.blocks[number].token_mixer, rule)  # type: ignore[arg-type]
        self.model.changed()

    def rules(self) -> list[AttentionRule | None]:
        """As `Ruled.rules`."""
        return [getattr(block.token_mixer, "rule", None) for block in self.model.blocks]

    def turn(self) -> Turn:
        """As `Ruled.turn`."""
        rotary: Any = getattr(self.model, "rotary", None)
        if rotary is None or hasattr(self.model, "more_rotaries"):
            raise UsageError("the layers of this model are not all told positions by the same rotary tables")
        return TableRotation(rotary)

    def extend_context(self, context: int, theta: float | None) -> None:
        """As `Ruled.extend_context`."""
        config = self.model.config
        if config.pattern or "rope_theta" not in config.token_mixer.options:
            raise UsageError("the layers of this model are not all told positions by the same rotary tables")
        if theta is not None:
            options = {**config.token_mixer.options, "rope_theta": theta}
            mixer = replace(config.token_mixer, options=options)
            config = replace(config, token_mixer=mixer)
        device = self.model.device
        self.model.config = replace(config, context=context)
        self.model.make_rotaries()
        self.model.to(device)
        self.model.changed()

    def keep_layers(self, numbers: Sequence[int]) -> None:
        """As `Anatomy.keep_layers`. A layer may be kept once only."""
        count = len(self.model.blocks)
        if not numbers or sorted(set(numbers)) != sorted(numbers) or not all(0 <= n < count for n in numbers):
            raise UsageError(f"layers to keep are numbers from 0 to {count - 1}, each once, not {list(numbers)}")
        self._put([self.model.blocks[number] for number in numbers], numbers)

    def copy_layers(self, numbers: Sequence[int]) -> None:
        """As `Anatomy.copy_layers`."""
        order = [place for number in range(len(self.model.blocks)) for place in [number] * (1 + (number in numbers))]
        self._put(with_copies(list(self.model.blocks), numbers), order)

    def swap_token_mixers(self, at: str, choice: Choice) -> None:
        """Put new token mixers in some layers, drawn from torch's global generator, silent at first.

        at: as `model.layout.places` reads it. Raises: UsageError where the model has no such layer, or the mixer does not fit.
        """
        model, blocks = self.model, self.model.blocks
        pattern = Pattern(at, token_mixer=choice)
        try:
            numbers = places(at, len(blocks))
            config = replace(model.config, pattern=(*model.config.pattern, pattern))
            alone = config.layer(numbers[0])
            try:
                choice.build(alone.width, alone.heads, alone.key_value_heads, alone.head_width)
            except ValueError:  # it has keys of each head
                pattern = replace(pattern, key_value_heads=alone.heads)
                config = replace(model.config, pattern=(*model.config.pattern, pattern))
            for number in numbers:
                made = Block(config.layer(number), Place(number, len(blocks), config.context))
                mixer: Any = made.token_mixer
                initialise(mixer, mixer, mixer, [mixer.output])
                old = next(blocks[number].token_mixer.parameters())  # type: ignore[union-attr]
                blocks[number].token_mixer = mixer.to(old.device, old.dtype).train(model.training)
        except ValueError as error:
            raise UsageError(f"other token mixers: {error}") from None
        self._configure(config)

    def numbers(self, at: str) -> tuple[int, ...]:
        """The layers that `at` names, as `model.layout.places` reads it. Raises: UsageError where there are none such."""
        try:
            return places(at, len(self.model.blocks))
        except ValueError as error:
            raise UsageError(str(error)) from None

    def swap_channel_mixers(self, at: str, choice: Choice) -> dict[int, nn.Module]:
        """Put new channel mixers in some layers, drawn from torch's global generator, silent at first.

        at: as `model.layout.places` reads it. Returns those that there were, by layer. Raises: UsageError where the model has no
        such layer, or the mixer does not fit.
        """
        model, blocks, old = self.model, self.model.blocks, dict[int, nn.Module]()
        try:
            config = replace(model.config, pattern=(*model.config.pattern, Pattern(at, channel_mixer=choice)))
            for number in places(at, len(blocks)):
                alone = config.layer(number)
                mixer: Any = choice.build(alone.width, alone.hidden)
                told: Any = getattr(mixer, "placed", None)
                if told is not None:
                    told(Place(number, len(blocks), config.context))
                initialise(mixer, mixer, mixer, [mixer.output])
                block: Any = blocks[number]
                old[number] = block.channel_mixer
                like = next(block.channel_mixer.parameters())
                block.channel_mixer = mixer.to(like.device, like.dtype).train(model.training)
        except ValueError as error:
            raise UsageError(f"other channel mixers: {error}") from None
        self._configure(config)
        return old

    def restate_experts(self, layers: Sequence[int]) -> None:
        """Have the configuration say how many experts these layers have now, how wide they are, and to how many a token goes."""
        changes = dict[int, dict[str, Any]]()
        for number in layers:
            mixer: Any = self.model.blocks[number].channel_mixer
            options = changes[number] = {"experts": mixer.experts, "expert_hidden": mixer.output.weight.shape[2]}
            router = self.model.config.layer(number).channel_mixer.options["router"]
            if "active" in router:
                options["router"] = {**router, "active": round(mixer.router.active)}
        self.restate_channel_mixers(changes)

    def restate_channel_mixers(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Have the configuration say what channel mixers have become. changes: options that are others now, by layer."""
        config = self.model.config
        more = [
            Pattern(str(number), channel_mixer=config.layer(number).channel_mixer.with_options(**options))
            for number, options in changes.items()
        ]
        self._configure(replace(config, pattern=(*config.pattern, *more)))

    def swap_residuals(self, at: str, residual: str) -> None:
        """As `SwapsResiduals.swap_residuals`."""
        model, choice = self.model, Choice.of("model", residual, kind="residual")
        try:
            for number in places(at, len(model.blocks)):
                old = model.config.layer(number).residual.name
                if old != "pre_norm":
                    raise UsageError(f"layer {number} has the residual {old}, not pre_norm: name others with 'at'")
                block: Any = model.blocks[number]
                block.residual = choice.build(model.config.width)
                block.look()
            config = replace(model.config, pattern=(*model.config.pattern, Pattern(at, residual=choice)))
        except ValueError as error:
            raise UsageError(f"{residual}: {error}") from None
        self._configure(config)

    def mixers_from_attention(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, nn.Module]:
        """As `ConvertsAttention.mixers_from_attention`."""
        found: dict[int, nn.Module] = {}
        for number, choice in self._choices(at, mixer, options).items():
            own, old = self.model.config.layer(number), self._mixer(number)
            made = choice.build(own.width, own.heads, own.key_value_heads, own.head_width)
            self._take_over(number, old, made)
            found[number] = made
        return found

    def convert_attention(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, nn.Module]:
        """As `ConvertsAttention.convert_attention`. What a mixer has beside is drawn from torch's global generator."""
        numbers = list(self._choices(at, mixer, options))
        for number in numbers:
            self.convert_token_mixers(str(number), mixer, **options)
        return {number: self._mixer(number) for number in numbers}

    def _mixer(self, number: int) -> nn.Module:
        return self.model.get_submodule(f"blocks.{number}.token_mixer")

    def _choices(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, Choice]:
        """Of each layer, the new mixer with the options of the attention that is there."""
        try:
            numbers = places(at, len(self.model.blocks))
        except ValueError as error:
            raise UsageError(f"{mixer}: {error}") from None
        found = {}
        for number in numbers:
            kept = self.model.config.layer(number).token_mixer
            if kept.name != "attention":
                raise UsageError(
                    f"{mixer}: layer {number} has the token mixer {kept.name}, not attention: name others with 'at'"
                )
            found[number] = Choice.of("model", mixer, kind="token mixer", **{**kept.options, **options})
        return found

    @staticmethod
    def _take_over(number: int, old: Any, new: Any) -> None:
        if old.split != new.split:
            raise UsageError(f"layer {number} has other heads than its model says: convert first, and prune after that")
        for part in ("qkv", "query_norm", "key_norm", "output"):
            setattr(new, part, getattr(old, part))

    def hide_tokens(self, vector: Tensor, both_ways: bool) -> None:
        """Let the model read `HIDDEN`, as `vector` [width], and see both ways if that is wanted.

        Raises: UsageError where a layer reads tokens in order.
        """
        model = self.model
        mixers: list[Any] = [block.token_mixer for block in model.blocks]
        for layer, mixer in enumerate(mixers):
            if both_ways and not getattr(mixer, "both_ways", False):
                raise UsageError(f"layer {layer} has {type(mixer).__name__}, which reads tokens in order: no both_ways")
        if both_ways:
            for mixer in mixers:
                mixer.causal = False
        hidden = HiddenToken(len(vector))
        hidden.vector = nn.Parameter(vector.clone())
        model.hidden_token = hidden
        self._configure(replace(model.config, hides=True, causal=model.config.causal and not both_ways))

    def convert_token_mixers(self, at: str, name: str, **options: Any) -> None:
        """Put the token mixer `name` in some layers, with all weights of theirs: what it has beside them starts as in a new model.

        at: as for `swap_token_mixers`. options: of the new mixer; those that are not given are the old one's, where both have them.
        Raises: UsageError where the layers have different mixers, or the new one has no place for a weight or an option of theirs.
        """
        blocks, configs = self.model.blocks, self.model.config
        try:
            numbers = places(at, len(blocks))
        except ValueError as error:
            raise UsageError(f"other token mixers: {error}") from None
        each = [configs.layer(number) for number in numbers]
        old = each[0].token_mixer
        if any(one.token_mixer != old for one in each):
            raise UsageError(f"layers {at} have different token mixers: convert those of one kind at a time")
        known = find("model", name, "token mixer").options().model_fields
        usual = old.card.options().model_fields
        lost = [key for key, value in old.options.items() if key not in known and value != usual[key].default]
        if lost:
            raise UsageError(
                f"{name} has no option {lost[0]}, which {old.name} has set: these layers cannot be converted"
            )
        shared = {key: value for key, value in old.options.items() if key in known}
        choice = Choice.of("model", name, kind="token mixer", **{**shared, **options})
        weights = [blocks[number].token_mixer.state_dict() for number in numbers]  # type: ignore[union-attr]
        sizes = [(one.width, one.heads, one.key_value_heads, one.head_width) for one in each]
        try:
            for before, size in zip(weights, sizes, strict=True):
                shapes = {key: weight.shape for key, weight in choice.build(*size).state_dict().items()}
                homeless = [key for key, weight in before.items() if shapes.get(key) != weight.shape]
                if homeless:
                    raise UsageError(f"{name} has no place for {old.name}'s {homeless[0]}: swap the mixers, and train")
        except ValueError as error:
            raise UsageError(f"other token mixers: {error}") from None
        self.swap_token_mixers(at, choice)
        for number, before in zip(numbers, weights, strict=True):
            blocks[number].token_mixer.load_state_dict(before, strict=False)  # type: ignore[union-attr]

    def wrap(self, at: str, choice: Choice) -> None:
        """Wrap a run of layers in a span, its weights drawn from torch's global generator.

        Raises: UsageError where a layer of it is in a span already, or the span does not fit.
        """
        model, config = self.model, self.model.config
        try:
            wrapped = replace(config, span=(*config.span, SpanAt(at, choice)))
        except ValueError as error:
            raise UsageError(f"another span: {error}") from None
        made = span_of(choice, config.width, config.vocabulary, config.causal)
        initialise(made, made, made, [])
        like = next(model.parameters())
        made = made.to_empty(device="meta") if like.is_meta else made.to(like.device, like.dtype)
        model.spans = nn.ModuleList([*getattr(model, "spans", ()), made.train(model.training)])
        self._configure(wrapped)

    def _put(self, blocks: Sequence[nn.Module], numbers: Sequence[int]) -> None:
        """numbers: of each of these layers, which of those that there were it is, or is a copy of."""
        require_lenders(blocks)
        try:
            config = self.model.config.with_layers(list(numbers))
        except ValueError as error:
            raise UsageError(str(error)) from None
        self.model.blocks = nn.ModuleList(blocks)
        self._configure(config)

    def _configure(self, config: ModelConfig) -> None:
        """What the model says of itself from now on."""
        uniform, self.model.config = self.model.config.uniform, config
        if not (uniform and config.uniform):  # layers may read other tables of positions than before
            device = self.model.device
            self.model.make_rotaries()
            self.model.to(device)
        self.model.changed()


def with_copies(layers: Sequence[nn.Module], numbers: Sequence[int]) -> list[nn.Module]:
    """The layers, a copy of each of these behind it. Raises: UsageError for a number that none has, or one that is there twice."""
    if sorted(set(numbers)) != sorted(numbers) or not all(0 <= number < len(layers) for number in numbers):
        raise UsageError(f"layers to copy are numbers from 0 to {len(layers) - 1}, each once, not {list(numbers)}")
    found = list[nn.Module]()
    for number, layer in enumerate(layers):
        found += [layer, copied(layer)] if number in numbers else [layer]
    return found


def _axes(part: nn.Module) -> tuple[Axis, ...]:
    own: Any = getattr(part, "axes", None)
    if own is not None:
        found: tuple[Axis, ...] = own()
        return found
    if getattr(part, "weight", None) is not None:  # a norm
        return (Axis("width", None, len(part.weight), (Slice("weight", 0),)),)  # type: ignore[arg-type]
    return ()


def _under(prefix: str, slices: Sequence[Slice]) -> tuple[Slice, ...]:
    return tuple(one._replace(name=f"{prefix}.{one.name}") for one in slices)
