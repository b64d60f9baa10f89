"""Causal self-attention with grouped queries, rotary positions and normalised queries and keys."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from shoestring.contract import cost
from shoestring.contract.cache import Attending, KeyValues
from shoestring.contract.cost import Shape
from shoestring.contract.grouped_attention import grouped_attention
from shoestring.method import Fraction, method
from shoestring.model.attention_heads import AttentionHeads
from shoestring.model.cache import KeyValueShape
from shoestring.model.chunked import chunked_attention
from shoestring.model.rotary import ScalingValue


@method(
    "model",
    kind="token mixer",
    name="attention",
    paper="GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, arXiv:2305.13245; "
    "Query-Key Normalization for Transformers, arXiv:2010.04245",
    claim="quality near multi-head attention with a key-value cache heads / key_value_heads times smaller; "
    "normalised queries and keys keep the scores bounded, so higher learning rates stay stable",
    cost="quadratic in the length: 4 B heads T² head_width FLOPs forward, beside two projections",
)
class Attention(AttentionHeads):
    """Causal softmax attention with grouped queries, rotary positions and normalised queries and keys.

    y = W_out softmax(q kᵀ / sqrt(head_width)) v, each position seeing itself and those before it, or all of them where the model
    is not causal.

    q, k: RMS-normalised over each head with a learnt gain (as Qwen3; the paper divides by the L2 norm and learns one
    scale), then rotated by position. rope_theta: base of the rotary frequencies. epsilon: of the query and key norms.

    qk_norm: whether queries and keys are normalised.
    bias: which layers add a learnt vector: none, that of queries, keys and values ('qkv', as Qwen2), or the output too ('all').
    rotary_share: of the features of a head, how many are rotated; the model's `Rotary` has the tables.
    rope_scaling: what is done to the frequencies for a longer context, a `rotary.Scaling`.
    """

    both_ways = True

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        rotary_share: Fraction = 1.0,
        rope_scaling: dict[str, ScalingValue] | None = None,
        **inherited: Any,
    ) -> None:
        super().__init__(width, heads, key_value_heads, head_width, **inherited)
        self.causal = True
        self.chunked = False
        """Whether training uses `chunked_attention`; `train.execution` decides that by measuring."""
        self.context_parts = 1
        self.across: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        """Attends over whole rows, where a pass has a part of each alone."""

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KeyValues | Attending | None = None,
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width].

        cos, sin: from `Rotary`.
        mask: bool, [T, T] or [B, 1, T, T], True where query t sees key s; None = causal (all, where the model is not), or
            everything when T = 1.
        cache: takes in the keys and values of x, and says which keys are seen, or attends to them itself.
        """
        q, k, v = self.by_heads(x, cos, sin)
        new = q.shape[2]
        if isinstance(cache, Attending):
            return self.output(cache.attend(q, k, v).transpose(1, 2).flatten(2))
        if cache is not None:
            k, v, mask = cache.append(k, v)
            if mask is not None and mask.shape[1] not in (1, self.split[0]):  # of each key head
                mask = mask.repeat_interleave(self.split[0] // mask.shape[1], 1)
        if self.across is not None:
            return self.output(self.across(q, k, v).transpose(1, 2).flatten(2))
        causal = mask is None and self.causal
        if new == 1:  # it sees all there is; a statement, as the kernel takes no symbolic truth when compiled
            causal = False
        if self.chunked and cache is None and causal:
            mixed = chunked_attention(q, k, v)
        else:
            mixed = grouped_attention(q, k, v, mask=mask, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def cache_shape(self) -> KeyValueShape | None:
        """What is kept of each token; None: nothing, as of one that keeps a running state."""
        return KeyValueShape(self.split[1], self.head_width)

    def divide(self, parts: int) -> None:
        """Compute an equal part of the heads, as `qkv` gives no others: the rest are other processes'. `heads` stays the number of
        all, which are counted once."""
        queries, keys, values = self.split
        self.split = (queries // parts, keys // parts, values // parts)

    def divide_context(self, across: Callable[[Tensor, Tensor, Tensor], Tensor], parts: int) -> None:
        """Have passes without a cache read one of `parts` equal parts of each row.

        across: q [B, Hq, t, D], k, v [B, Hk, t, D] to what queries see of the whole row, [B, Hq, t, D].
        """
        self.across, self.context_parts = across, parts

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        projected, back = self.projections(shape, inputs)
        return projected + self.inner_flops(shape, back)

    def inner_flops(self, shape: Shape, backward: bool) -> int:
        """Operations of attention itself."""
        keys = (shape.past + shape.new) * self.context_parts
        return cost.attention(shape.rows, self.heads, shape.new, keys, self.head_width, backward)
