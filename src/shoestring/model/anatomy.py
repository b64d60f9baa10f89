"""How surgery sees the native model: each part says which of its weights lie along which axis."""

import abc
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.contract.anatomy import Axis, Matrix, Slice
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.block import Block, Place
from shoestring.model.config import ModelConfig
from shoestring.model.hidden_token import HiddenToken
from shoestring.model.initialise import initialise
from shoestring.model.layout import Pattern, SpanAt, places
from shoestring.model.span import span_of
from shoestring.model.stacked_linear import StackedLinear


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


class NativeAnatomy:
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
        """As `Anatomy.resized`. Where layers differ in a size, the configuration has the first layer's."""
        model = self.model
        for block in model.blocks:
            for part in block.children():
                own: Any = getattr(part, "resized", None)
                if own is not None:
                    own()
        rows, width = model.embedding.weight.shape
        sizes: dict[str, Any] = {"vocabulary": rows, "width": width}
        for kind, key in (("hidden", "hidden"), ("head", "heads"), ("key_value_head", "key_value_heads")):
            # where a pattern names sizes of its own, the configuration goes on saying what it said
            if model.config.uniform and (axes := self.axes(kind)):
                sizes[key] = axes[0].size
        model.config = replace(model.config, **sizes)

    def uniform(self) -> bool:
        """Whether all layers have the sizes that the configuration says."""
        if not self.model.config.uniform:
            return False
        return all(len({axis.size for axis in self.axes(kind)}) <= 1 for kind in ("hidden", "head", "key_value_head"))

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
        found += [layer, copy.deepcopy(layer)] if number in numbers else [layer]
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
