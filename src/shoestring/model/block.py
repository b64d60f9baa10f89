"""A block: mix the tokens, mix the channels, each added to the residual stream.

What fills the two slots is a registered method that is an `nn.Module` with

* a constructor `(width, heads, key_value_heads, head_width, *, options)` for a token mixer, `(width, hidden, *,
  options)` for a channel mixer, which also has a class attribute `expansion`: its customary hidden / width;
* `forward(x, cos, sin, mask, cache)` as `Attention` for a token mixer, `forward(x)` for a channel mixer;
* `cache_shape()` for a token mixer: what it keeps of each token, None for nothing;
* `flops(shape, inputs)`: operations of a pass, `inputs` saying whether x takes a gradient;
* `axes()`, where its weights may be sliced: the `Axis`es that they lie along;
* `output`: the module whose `weight` writes to the residual stream, which starts at zero.

What only some have:

* `placed(place)`: told once where it stands, a `Place`;
* `draw()`: draw the first values of parameters of its own, from torch's global generator;
* `silence()`: put to zero what else writes to the stream, once all is drawn;
* `recurrent = True`, of a token mixer that keeps a state of its own: in place of `mask` it takes `documents`, [B, T] int64 or
  None, and starts anew with each. `new_cache(rows, room, dtype, device)` makes the state, `state_bytes(dtype)` says what one row
  takes, and `token_bytes(dtype)`, where it grows, what each token adds; see `OwnState` and `RecurrentMixer`;
* `own_cache(rows)`: makes the state of a token mixer that attends from it, an `Attending`, in place of keys and values;
* `tells = True`: it returns (output, notes); see `contract.model.Notes`;
* `early = True`, of a channel mixer: `route(x, trail)` is asked with the stream as it enters the block, before the tokens are
  mixed, and what it says is given to `forward(x, routed)`; `trail`: see `model.span.Where`;
* `alone(options)`, static, of a channel mixer that may need a layer before it: the options with which it does not;
* `begin_part(part, over_workers)`, of it or of a module within: told before each micro-batch of a step which one it is, from 0, and
  what adds a tensor up over the processes that share the step (None: there is one);
* `both_ways = True`, of a token mixer that can show a token those after it: `causal` is then set, False for a model that is not;
* `looks_ahead = True`: while it trains, it looks at later tokens; evaluation and decoding switch its `training` off;
* `compiles = False`: the compiler gains nothing from it, as it depends on the values.

A registered method of kind 'residual' joins the two: see `PreNorm`. With `carries = True` it takes and gives a `Carried`: see
`LadderResidual`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from shoestring.contract.cache import KeyValues
from shoestring.contract.cost import Shape, bytes_of, trains
from shoestring.contract.model import Carried, Mixer, Notes, whole
from shoestring.model.config import ModelConfig


class Place(NamedTuple):
    """Where a part stands. layer: its number, of `layers`. context: the most tokens of a sequence."""

    layer: int
    layers: int
    context: int


class Block(nn.Module):
    """token_mixer(norm(x)) and channel_mixer(norm(x)), joined by the residual.

    Compiled as a region of its own (`block.compile()`): it takes tensors alone and branches on nothing in them.

    config: of a model whose layers are all as this one.
    place: where it stands; None: the only layer.
    """

    def __init__(self, config: ModelConfig, place: Place | None = None) -> None:
        super().__init__()
        self.token_norm = config.norm.build(config.width)
        self.token_mixer = config.token_mixer.build(
            config.width, config.heads, config.key_value_heads, config.head_width
        )
        self.channel_norm = config.norm.build(config.width)
        self.channel_mixer = config.channel_mixer.build(config.width, config.hidden)
        self.residual = config.residual.build(config.width)
        if not config.causal:
            if not getattr(self.token_mixer, "both_ways", False):
                raise ValueError(
                    f"the token mixer {config.token_mixer.name} reads tokens in order, and this model sees both ways: "
                    "give attention, or causal = true"
                )
            self.token_mixer.causal = False
        for part in self.children():
            told: Any = getattr(part, "placed", None)
            if told is not None:
                told(place or Place(0, 1, config.context))
        self.look()

    def look(self) -> None:
        """Note what the parts are: to be called once one was replaced."""
        parts = self.token_mixer, self.channel_mixer
        self.recurrent = bool(getattr(self.token_mixer, "recurrent", False))
        self.tells = any(getattr(part, "tells", False) for part in parts)
        self.early = bool(getattr(self.channel_mixer, "early", False))
        self.carries = bool(getattr(self.residual, "carries", False))
        self.compiles = all(getattr(part, "compiles", True) for part in parts)
        self._plain = not (self.recurrent or self.tells or self.early)

    def forward(
        self,
        x: Tensor | Carried,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
        documents: Tensor | None = None,
        channel_rule: Callable[[Tensor, Mixer], Tensor] | None = None,
        trail: dict[str, Any] | None = None,
    ) -> Tensor | Carried | tuple[Tensor | Carried, Notes]:
        """x [B, T, width] -> [B, T, width], with notes where it `tells`; the rest as in `Attention.forward`.

        A block that `carries` gives a `Carried`; any takes one.

        documents: [B, T], of a part that is recurrent.
        channel_rule: makes what the channel mixer adds, of the hidden states before it and the mixer; None: the mixer does. Of
        layers that are plain.
        trail: of a part that is early.
        """
        if not self.carries:
            x = whole(x)
        if not self._plain:
            return self._with_notes(x, cos, sin, documents if self.recurrent else mask, cache, trail)

        def tokens(x: Tensor) -> Tensor:
            mixed: Tensor = self.token_mixer(self.token_norm(x), cos, sin, mask, cache)
            return mixed

        def channels(x: Tensor) -> Tensor:
            mixed: Tensor = self.channel_mixer(self.channel_norm(x))
            return mixed

        def ruled(x: Tensor) -> Tensor:
            return channels(x) if channel_rule is None else channel_rule(x, channels)

        joined: Tensor | Carried = self.residual(x, tokens, ruled)
        return joined

    def _with_notes(
        self,
        x: Tensor | Carried,
        cos: Tensor,
        sin: Tensor,
        seen: Tensor | None,
        cache: Any,
        trail: dict[str, Any] | None,
    ) -> Tensor | Carried | tuple[Tensor | Carried, Notes]:
        """As `forward`, of parts that are more than plain ones. seen: mask or documents."""
        notes: Notes = {}
        routed: Any = self.channel_mixer.route(whole(x), trail) if self.early else None

        def heard(found: Any) -> Tensor:
            output, told = found if isinstance(found, tuple) else (found, {})
            notes.update(told)
            mixed: Tensor = output
            return mixed

        def tokens(x: Tensor) -> Tensor:
            return heard(self.token_mixer(self.token_norm(x), cos, sin, seen, cache))

        def channels(x: Tensor) -> Tensor:
            normed = self.channel_norm(x)
            return heard(self.channel_mixer(normed, routed) if self.early else self.channel_mixer(normed))

        joined: Tensor | Carried = self.residual(x, tokens, channels)
        return (joined, notes) if self.tells else joined

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
