"""The shape of a model: one frozen configuration, complete once made. `Transformer(config)` is the model."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Interval

from shoestring.config import Choice, Pick
from shoestring.method import Positive

TOKEN_MIXER = Pick("model", "token mixer", default="attention")
CHANNEL_MIXER = Pick("model", "channel mixer", default="swiglu")
NORM = Pick("model", "norm", default="rmsnorm")
RESIDUAL = Pick("model", "residual", default="pre_norm")

Size = Annotated[int, Interval(ge=1, le=1 << 20)]
OrAuto = Annotated[int, Interval(ge=0, le=1 << 24)]
"""A count, or 0 to have it worked out."""


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
    windows it is trained on. digest: of the base. residual: how the two mixers of a block are
    joined.

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

    def _own_sizes(self) -> dict[str, int]:
        """What is worked out where nothing is given."""
        mixer: Any = self.channel_mixer.card.target
        hidden = math.ceil(self.width * mixer.expansion / 32) * 32
        return {"key_value_heads": self.heads, "head_width": self.width // self.heads, "hidden": hidden}

    def following(self) -> frozenset[str]:
        """The sizes that are what would be worked out from the others: where these change, they are to change with them."""
        return frozenset(name for name, value in self._own_sizes().items() if getattr(self, name) == value)
