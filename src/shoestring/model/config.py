"""The shape of a model: one frozen configuration, complete once made. `Transformer(config)` is the model."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Interval

from shoestring.config import Choice
from shoestring.method import Positive
from shoestring.model.layout import (
    CHANNEL_MIXER,
    EMBEDDING,
    NORM,
    RESIDUAL,
    TOKEN_MIXER,
    OrAuto,
    Pattern,
    SpanAt,
    SpanList,
    places,
    span_places,
)

Size = Annotated[int, Interval(ge=1, le=1 << 20)]


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    layers: blocks. width: of the residual stream. heads: query heads. key_value_heads: heads of keys and values, each
    shared by heads / key_value_heads query heads; 0 = as many as heads. head_width: 0 = width / heads. hidden: inner
    width of the channel mixer; 0 = what its `expansion` asks of the width, rounded up to a multiple of 32. vocabulary:
    tokens; 0 = not known yet, the tokenizer will tell. context: the most tokens of one sequence. token_mixer: what
    lets a token see those before it. channel_mixer: what works on each token by itself. norm: before each of them.
    tied: one matrix is both the embedding and the output head. input_scale: factor on the embedded tokens as they
    enter the residual stream; with a norm at the start of every block it is one over a factor on all the blocks
    add. output_scale: factor on the logits (the multiplier of muP). A rule of `schedule.transfer` sets both. base: the place
    of a model that exists, which a run trains on; the sizes are then that model's, and `context` is the length of the
    windows it is trained on. digest: of the base. packed: whether the base's packed matrices stay so, for adapters beside them.
    residual: how the two mixers of a block are joined. pattern: layers that
    differ from the rest; where two name a layer, the later one has the last word. span: runs of layers that are wrapped.
    causal: whether a token sees only those before it; false: all of its text. hides: whether there is a vector to read where
    a token is not shown. embedding: one that is narrower than the model; None: a table as wide as it.

    Whatever is worked out is stored, so a saved configuration is complete and does not change with its defaults.
    Raises: ValueError where the sizes cannot go together.
    """

    layers: Annotated[int, Interval(ge=1, le=4096)] = 6
    width: Size = 256
    heads: Size = 4
    key_value_heads: OrAuto = 0
    head_width: OrAuto = 0
    hidden: OrAuto = 0
    vocabulary: OrAuto = 0
    context: Annotated[int, Interval(ge=1, le=1 << 24)] = 256
    token_mixer: Annotated[Choice, TOKEN_MIXER] = field(default_factory=TOKEN_MIXER.choice)
    channel_mixer: Annotated[Choice, CHANNEL_MIXER] = field(default_factory=CHANNEL_MIXER.choice)
    norm: Annotated[Choice, NORM] = field(default_factory=NORM.choice)
    tied: bool = True
    input_scale: Positive = 1.0
    output_scale: Positive = 1.0
    residual: Annotated[Choice, RESIDUAL] = field(default_factory=RESIDUAL.choice)
    base: str = ""
    digest: str = ""
    packed: bool = False
    pattern: tuple[Pattern, ...] = ()
    span: Annotated[tuple[SpanAt, ...], SpanList()] = ()
    causal: bool = True
    hides: bool = False
    embedding: Annotated[Choice, EMBEDDING] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("key_value_heads", "head_width", "hidden", "vocabulary"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("input_scale", "output_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number above 0, not {getattr(self, name)}")
        if not self.head_width and self.width % self.heads:
            raise ValueError(f"heads must divide width where head_width is not given: {self.heads} and {self.width}")
        for name, value in self._own_sizes().items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.heads % self.key_value_heads:
            raise ValueError(f"key_value_heads must divide heads: {self.key_value_heads} and {self.heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width must be even, as rotary positions turn pairs, not {self.head_width}")
        if self.pattern or self.span:
            self._require_layout()

    def _require_layout(self) -> None:
        """Raises: ValueError, with the layer and the rule, for a layout that cannot be."""
        for number, pattern in enumerate(self.pattern):
            try:
                named = places(pattern.at, self.layers)
            except ValueError as error:
                raise ValueError(f"pattern {number + 1}: {error}") from None
            if not pattern.changes():
                raise ValueError(f"pattern {number + 1} (at = '{pattern.at}') changes nothing: give a token_mixer, say")
            try:
                self.layer(named[0])
            except ValueError as error:
                raise ValueError(f"layer {named[0]}, of pattern {number + 1} (at = '{pattern.at}'): {error}") from None
        span_places(self.span, self.layers)

    def layer(self, number: int) -> "ModelConfig":
        """The configuration of one layer by itself: what the patterns make of it, and no pattern or span."""
        changes: dict[str, Any] = {"layers": 1, "pattern": (), "span": ()}
        if not self.pattern:
            return replace(self, **changes)
        given: dict[str, Any] = {}
        for pattern in self.pattern:
            if number in places(pattern.at, self.layers):
                given |= pattern.changes()
        if "channel_mixer" in given and "hidden" in self.following():
            changes["hidden"] = 0
        if "heads" in given:
            changes |= {"key_value_heads": 0, "head_width": 0}
        return replace(self, **changes | given)

    def alone(self) -> "ModelConfig":
        """Of one layer: as this, where a part that needs a layer before it stands by itself instead, as for timing it."""
        changed = getattr(self.channel_mixer.card.target, "alone", None)
        if changed is None:
            return self
        return replace(self, channel_mixer=self.channel_mixer.with_options(**changed(self.channel_mixer.options)))

    def kinds(self) -> list[tuple["ModelConfig", list[int]]]:
        """The distinct layers: (the configuration of one by itself, the numbers of all that are such)."""
        if not self.pattern:
            return [(self.layer(0), list(range(self.layers)))]
        found: list[tuple[ModelConfig, list[int]]] = []
        for number in range(self.layers):
            own = self.layer(number)
            same = next((numbers for known, numbers in found if known == own), None)
            if same is None:
                found.append((own, [number]))
            else:
                same.append(number)
        return found

    @property
    def uniform(self) -> bool:
        """Whether all layers are as the configuration says of all, and none is wrapped."""
        return not self.pattern and not self.span

    def with_layers(self, numbers: list[int]) -> "ModelConfig":
        """As this, of these layers in this order; a number may stand there twice. Raises: ValueError where spans forbid it."""
        if self.span:
            raise ValueError("layers of a model with spans cannot be dropped or copied: the spans would wrap others")
        if not self.pattern:
            return replace(self, layers=len(numbers))
        made: dict[int, list[int]] = {}
        for place, number in enumerate(numbers):
            for order, pattern in enumerate(self.pattern):
                if number in places(pattern.at, self.layers):
                    made.setdefault(order, []).append(place)
        kept = tuple(replace(self.pattern[order], at=", ".join(map(str, made[order]))) for order in sorted(made))
        return replace(self, layers=len(numbers), pattern=kept)

    def _own_sizes(self) -> dict[str, int]:
        """What is worked out where nothing is given."""
        mixer: Any = self.channel_mixer.card.target
        hidden = math.ceil(self.width * mixer.expansion / 32) * 32
        return {"key_value_heads": self.heads, "head_width": self.width // self.heads, "hidden": hidden}

    def following(self) -> frozenset[str]:
        """The sizes that are what would be worked out from the others: where these change, they are to change with them."""
        return frozenset(name for name, value in self._own_sizes().items() if getattr(self, name) == value)
