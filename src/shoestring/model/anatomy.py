"""How surgery sees the native model: each part says which of its weights lie along which axis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.anatomy import Axis, Matrix, Slice
from shoestring.contract.attention_rule import AttentionRule, AttentionSizes, Ruled, Turn
from shoestring.contract.lending import copied, require_lenders
from shoestring.errors import UsageError
from shoestring.model.attention import Attention
from shoestring.model.changed_parts import ChangedParts
from shoestring.model.cut_config import cut_config
from shoestring.model.ruled_attention import with_rule
from shoestring.model.stacked_linear import StackedLinear

KINDS = ("hidden", "head", "key_value_head", "ssm_channel", "ssm_state", "expert", "expert_hidden")
"""Kinds of axes that each layer has one of its own of."""


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


class NativeAnatomy(ChangedParts, Ruled):
    """The `Anatomy` of a `Transformer`. A part of a block has a method `axes()`, with names relative to the part."""

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
        slices = [Slice("norm.weight", 0)]
        if self.model.config.embedding is None:
            slices.append(Slice("embedding.weight", 1))
        else:
            slices += _under("narrow", self.model.narrow.width_slices())
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
        found = []
        for one in slices:
            found.append(one)
            owner, _, attribute = one.name.rpartition(".")
            if one.dim != 0 or attribute != "weight":
                continue
            if self.model.get_submodule(owner)._parameters.get("bias") is not None:
                found.append(one._replace(name=f"{owner}.bias"))
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
        rows, width = len(model.embedding.weight), len(model.norm.weight)
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

    def _put(self, blocks: Sequence[nn.Module], numbers: Sequence[int]) -> None:
        """numbers: of each of these layers, which of those that there were it is, or is a copy of."""
        require_lenders(blocks)
        try:
            config = self.model.config.with_layers(list(numbers))
        except ValueError as error:
            raise UsageError(str(error)) from None
        self.model.blocks = nn.ModuleList(blocks)
        self._configure(config)


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
