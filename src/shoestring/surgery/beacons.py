"""Beacons: places among the tokens of a text whose keys and values stand for those of a window of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.attention_rule import AttentionRule, RuledLayer, Turn
from shoestring.contract.role import ADAPTER
from shoestring.errors import UsageError


@dataclass
class BeaconPass:
    """The places of a pass, tokens and beacons.

    beacons: [n] bool, which are beacons. positions: [n] int64. shift: [n], by how much queries are turned further.
    visible: [n, S] bool, which of the places that are held and of its own a place sees.
    """

    beacons: Tensor
    positions: Tensor
    shift: Tensor
    visible: Tensor

    @property
    def numbers(self) -> Tensor:
        """Places of the beacons."""
        return self.beacons.nonzero()[:, 0]


class BeaconPlaces:
    """What the parts of a model with beacons share. now: the pass that is made; None: one without beacons, token after token.

    share: (beacons, places) of the pass whose operations are counted.
    """

    def __init__(self) -> None:
        self.now: BeaconPass | None = None
        self.share = (0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {"now": None, "share": (0, 1)}


def whole_text(length: int, window: int, ratios: Sequence[int], device: torch.device) -> BeaconPass:
    """The places of a text of `length` tokens, each full window followed by its beacons, but for the last.

    ratios: of each window that others follow, tokens for a beacon.
    """
    parts, memory = [], 0
    for number, start in enumerate(range(0, length, window)):
        size = min(window, length - start)
        parts += [(number, 0, memory + place, 0, place) for place in range(size)]
        if start + size < length:
            count = window // ratios[number]
            # a beacon sees `upto`: the tokens that it and those before it stand for
            parts += [(number, 1, memory + i, window, (i + 1) * ratios[number] - 1) for i in range(count)]
            memory += count
    window_of, beacon, position, shift, upto = torch.tensor(parts, device=device).T
    is_beacon = beacon.bool()
    same, earlier = window_of[:, None] == window_of, window_of[:, None] > window_of
    places = torch.arange(len(parts), device=device)
    # a token's own place in its window is `upto` too
    tokens = ~is_beacon & (upto <= upto[:, None])
    among = is_beacon & is_beacon[:, None] & (places <= places[:, None])
    return BeaconPass(is_beacon, position, shift, (earlier & is_beacon) | (same & (tokens | among)))


def next_places(
    memory: int, held: int, due: int, ratio: int, new: int, window: int, device: torch.device
) -> BeaconPass:
    """The places of a pass with a cache: `due` beacons of the window that is held, if any, then `new` tokens.

    memory: beacons that are held. held: tokens of the window that are held.
    """
    total = memory + held + due + new
    index, keys = torch.arange(due + new, device=device), torch.arange(total, device=device)
    beacon, first = index < due, memory + held
    own = (keys >= first) & (keys - first <= index[:, None])
    old = (keys >= memory) & (keys < first)
    upto = torch.where(beacon, (index + 1) * ratio, 0 if due else window)
    visible = (keys < memory) | own | (old & (keys - memory < upto[:, None]))
    positions = torch.where(beacon, memory + index, memory + due + (0 if due else held) + index - due)
    return BeaconPass(beacon, positions, beacon * window, visible)


class BeaconLinear(nn.Module):
    """y = W x, and at beacons (W + delta) x: a projection of their own. delta: [out, in], at first 0, alone trained."""

    roles: ClassVar = {"delta": ADAPTER}

    def __init__(self, base: nn.Linear, places: BeaconPlaces) -> None:
        super().__init__()
        self.base, self.places = base, places
        self.in_features, self.out_features = base.in_features, base.out_features
        self.delta = nn.Parameter(torch.zeros_like(base.weight))

    @property
    def weight(self) -> Tensor:
        """W."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """As the class says. x: [B, n, in]."""
        y: Tensor = self.base(x)
        if self.places.now is None:
            return y
        numbers = self.places.now.numbers
        return y.index_add(1, numbers, F.linear(x[:, numbers], self.delta).to(y.dtype))

    def flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        """As `contract.cost.linear` asks."""
        beacons, places = self.places.share
        own = cost.matrix_product(self.delta, tokens * beacons // places, backward, inputs)
        return cost.linear(self.base, tokens, backward, inputs) + own


def place_embedding(embedding: Any, given: tuple[Any, ...], found: Tensor) -> Tensor:
    """A hook of the embedding: beacons have a vector of their own."""
    now = embedding.beacon_places.now
    if now is None:
        return found
    return torch.where(now.beacons[:, None], embedding.beacon.to(found.dtype), found)


class BeaconRule(AttentionRule):
    """Attention of tokens and beacons by what each sees; beacons ask as if they stood behind their window."""

    def __init__(self, turn: Turn, places: BeaconPlaces) -> None:
        super().__init__()
        self.turn, self.places = turn, places

    def shifted(self, queries: Tensor, now: BeaconPass) -> Tensor:
        """Queries [B, H, n, D], those of beacons turned further."""
        cos, sin = self.turn(now.shift)
        first, second = queries.float().chunk(2, -1)
        return (queries.float() * cos + torch.cat((-second, first), -1) * sin).to(queries.dtype)

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """As `AttentionRule.attend`."""
        now, grouped = self.places.now, queries.shape[1] != keys.shape[1]
        if now is None:
            causal = visible is None and queries.shape[2] > 1
            return F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=visible, is_causal=causal, scale=scale, enable_gqa=grouped
            )
        asked = self.shifted(queries, now)
        return F.scaled_dot_product_attention(
            asked, keys, values, attn_mask=now.visible, scale=scale, enable_gqa=grouped
        )

    def new_layer(self) -> "BeaconLayer":
        """As `AttentionRule.new_layer`."""
        return BeaconLayer(self)


class BeaconLayer(RuledLayer):
    """Keys and values [1, Hk, S, D] of the beacons of windows that are over, then of the tokens of the window that is not.

    memory: how many beacons.
    """

    def __init__(self, rule: BeaconRule) -> None:
        self.rule = rule
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.memory = 0

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (self.keys, self.values) if one is not None)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """As `contract.cache.Attending`. Tokens go as soon as their beacons are there."""
        now = self.rule.places.now
        if window is not None or now is None:
            raise UsageError("a cache with beacons is read by its own model, whose layers see all of the window")
        k = keys if self.keys is None else torch.cat((self.keys, keys), 2)
        v = values if self.values is None else torch.cat((self.values, values), 2)
        found = F.scaled_dot_product_attention(
            self.rule.shifted(queries, now), k, v, attn_mask=now.visible, scale=scale, enable_gqa=True
        )
        due = int(now.beacons.sum())
        if due:
            held = k.shape[2] - keys.shape[2]
            k, v = (torch.cat((one[:, :, : self.memory], one[:, :, held:]), 2) for one in (k, v))
            self.memory += due
        self.keys, self.values = k, v
        return found
