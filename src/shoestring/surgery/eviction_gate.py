"""A gate that decides, as a token is read, whether its key and value leave the cache some tokens later."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.attention_rule import AttentionRule, AttentionSizes, whole_scores
from shoestring.contract.model import LOSS, Notes
from shoestring.contract.role import ADAPTER
from shoestring.surgery.delayed_eviction import DelayedEviction


class EvictedShares:
    """Of the gates of one model: the share of tokens that each evicts in the pass that is made, [B]. layers: that have a gate."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.of: dict[int, Tensor] = {}

    def loss(self, layer: int, target: Tensor) -> Tensor:
        """The part of layer number `layer`, among those that have a gate, of the mean over texts of

            max(target - 1/L sum_l share_l, 0):

        what it is with this layer less what it is without it and those after it. The parts of all layers are the whole.
        """
        before = sum(
            (self.of[number] for number in range(layer) if number in self.of), torch.zeros_like(self.of[layer])
        )
        lacking = [(target - total / self.layers).clamp_min(0) for total in (before, before + self.of[layer])]
        return (lacking[1] - lacking[0] if layer else lacking[1]).mean()

    def __getstate__(self) -> Mapping[str, Any]:
        return {"layers": self.layers, "of": {}}  # what a pass left behind belongs to its gradients


class EvictionGate(AttentionRule):
    """Attention that does not see tokens which were evicted; see `surgery.edits.dms`.

    place: of the layer, among those that have a gate; its draws differ from the others'. seed: of the draws.
    gate: [Hk, width]. step: of training. target: the share of tokens that is to leave.
    """

    tells, fused = True, False
    roles: ClassVar = {"gate": ADAPTER}
    step: Tensor
    target: Tensor

    def __init__(
        self,
        sizes: AttentionSizes,
        shares: EvictedShares,
        *,
        place: int,
        delay: int,
        temperature: float,
        offset: float,
        scale: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(sizes.key_value_heads, sizes.width))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("target", torch.zeros(()))
        self.shares, self.place, self.delay = shares, place, delay
        self.temperature, self.offset, self.scale, self.seed = temperature, offset, scale, seed
        self._heard: Tensor | None = None

    def extra_repr(self) -> str:
        return f"heads={len(self.gate)}, delay={self.delay}"

    def hear(self, x: Tensor) -> None:
        """As `AttentionRule.hear`."""
        self._heard = self.scale * F.linear(x.float(), self.gate.float()).transpose(1, 2) - self.offset

    def logits(self) -> Tensor:
        """[B, Hk, T], of the tokens that were heard."""
        found, self._heard = self._heard, None
        assert found is not None
        return found

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """As `AttentionRule.attend`: with gradients, a token is evicted in part; without, whole or not at all."""
        logits = self.logits()
        places = torch.arange(queries.shape[2], device=queries.device)
        behind = places[:, None] - places
        if torch.is_grad_enabled():
            leaning = (logits + self._noise(logits)) / self.temperature
            self.shares.of[self.place] = leaning.sigmoid().mean((1, 2))
            left = -F.softplus(leaning)  # log(1 - sigmoid)
        else:
            left = torch.where(logits > 0, -torch.inf, 0.0)
        added = torch.where(behind > self.delay, left[:, :, None], 0.0).masked_fill(behind < 0, -torch.inf)
        weights = whole_scores(queries, keys, scale, added, visible).to(values.dtype)
        return (weights @ values[:, :, None]).flatten(1, 2)

    def told(self) -> Notes:
        """The part of the loss."""
        if self.place not in self.shares.of or not torch.is_grad_enabled():
            return {}
        return {f"{LOSS}eviction": self.shares.loss(self.place, self.target)}

    def _noise(self, like: Tensor) -> Tensor:
        """The difference of two Gumbel variables for each token and head: of the seed, the step, the layer and the shape alone."""
        generator = torch.Generator(like.device).manual_seed(
            (self.seed * 1_000_003 + int(self.step)) * 8191 + self.place
        )
        drawn = torch.rand(like.shape, generator=generator, device=like.device).clamp(1e-6, 1 - 1e-6)
        return drawn.log() - (-drawn).log1p()

    def new_layer(self) -> DelayedEviction:
        """As `AttentionRule.new_layer`."""
        return DelayedEviction(self)

    def leaving(self, positions: Tensor, heads: int) -> Tensor:
        """As `delayed_eviction.Leaving.leaving`."""
        return self.logits()[0] > 0
