"""A block: mix the tokens, mix the channels, each added to the residual stream.

What fills the two slots is a registered method that is an `nn.Module` with

* a constructor `(width, heads, key_value_heads, head_width, *, options)` for a token mixer, `(width, hidden, *,
  options)` for a channel mixer, which also has a class attribute `expansion`: its customary hidden / width;
* `forward(x, cos, sin, mask, cache)` as `Attention` for a token mixer, `forward(x)` for a channel mixer;
* `cache_shape()` for a token mixer: what it keeps of each token, None for nothing;
* `flops(shape, inputs)`: operations of a pass, `inputs` saying whether x takes a gradient;
* `axes()`, where its weights may be sliced: the `Axis`es that they lie along;
* `output`: the `nn.Linear` that writes to the residual stream, which starts at zero.

A registered method of kind 'residual' joins the two: see `PreNorm`.
"""

from collections.abc import Callable

from torch import Tensor, nn

from shoestring.contract.cache import KeyValues
from shoestring.contract.cost import Shape, bytes_of, trains
from shoestring.contract.model import Mixer
from shoestring.model.config import ModelConfig


class Block(nn.Module):
    """token_mixer(norm(x)) and channel_mixer(norm(x)), joined by the residual.

    Compiled as a region of its own (`block.compile()`): it takes tensors alone and branches on nothing in them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token_norm = config.norm.build(config.width)
        self.token_mixer = config.token_mixer.build(
            config.width, config.heads, config.key_value_heads, config.head_width
        )
        self.channel_norm = config.norm.build(config.width)
        self.channel_mixer = config.channel_mixer.build(config.width, config.hidden)
        self.residual = config.residual.build(config.width)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
        channel_rule: Callable[[Tensor, Mixer], Tensor] | None = None,
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]; the rest as in `Attention.forward`.

        channel_rule: makes what the channel mixer adds, of the hidden states before it and the mixer; None: the mixer does.
        """

        def tokens(x: Tensor) -> Tensor:
            mixed: Tensor = self.token_mixer(self.token_norm(x), cos, sin, mask, cache)
            return mixed

        def channels(x: Tensor) -> Tensor:
            mixed: Tensor = self.channel_mixer(self.channel_norm(x))
            return mixed

        def ruled(x: Tensor) -> Tensor:
            return channels(x) if channel_rule is None else channel_rule(x, channels)

        joined: Tensor = self.residual(x, tokens, ruled)
        return joined

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        back = shape.backward
        token_inputs = inputs or (back and trains(self.token_norm))
        stream = inputs or (back and self.residual.sequential and (token_inputs or trains(self.token_mixer)))
        channel_inputs = stream or (back and trains(self.channel_norm))
        tokens: int = self.token_mixer.flops(shape, token_inputs)
        channels: int = self.channel_mixer.flops(shape, channel_inputs)
        return tokens + channels

    def channel_flops(self) -> int:
        """Operations of the channel mixer at one place, forward."""
        found: int = self.channel_mixer.flops(Shape(1, 1), False)
        return found

    @property
    def channel_bytes(self) -> int:
        """Of the channel mixer's weights."""
        return bytes_of(self.channel_mixer)
