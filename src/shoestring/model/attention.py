"""Causal self-attention with grouped queries, rotary positions and normalised queries and keys."""

from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cache import Attending, KeyValues
from shoestring.contract.cost import Shape
from shoestring.method import Epsilon, Fraction, method
from shoestring.model.cache import KeyValueShape
from shoestring.model.chunked import chunked_attention
from shoestring.model.norm import RMSNorm
from shoestring.model.rotary import ScalingValue, rotate


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
class Attention(nn.Module):
    """Causal softmax attention with grouped queries, rotary positions and normalised queries and keys.

    y = W_out softmax(q kᵀ / sqrt(head_width)) v, each position seeing itself and those before it.

    q, k: RMS-normalised over each head with a learnt gain (as Qwen3; the paper divides by the L2 norm and learns one
    scale), then rotated by position. rope_theta: base of the rotary frequencies. epsilon: of the query and key norms.

    qk_norm: whether queries and keys are normalised.
    bias: which layers add a learnt vector: none, that of queries, keys and values ('qkv', as Qwen2), or the output too ('all').
    rotary_share: of the features of a head, how many are rotated; the model's `Rotary` has the tables.
    rope_scaling: what is done to the frequencies for a longer context, a `rotary.Scaling`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        qk_norm: bool = True,
        rope_theta: Annotated[float, Interval(gt=0, le=1e12)] = 10000.0,
        epsilon: Epsilon = 1e-6,
        bias: Literal["none", "qkv", "all"] = "none",
        rotary_share: Fraction = 1.0,
        rope_scaling: dict[str, ScalingValue] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.rope_theta = heads, head_width, rope_theta
        self.chunked = False
        """Whether training uses `chunked_attention`; `train.execution` decides that by measuring."""
        self.split = (heads, key_value_heads, key_value_heads)
        self.qkv = nn.Linear(width, sum(self.split) * head_width, bias=bias != "none")
        self._mark()
        self.query_norm = RMSNorm(head_width, epsilon=epsilon) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(head_width, epsilon=epsilon) if qk_norm else nn.Identity()
        self.output = nn.Linear(heads * head_width, width, bias=bias == "all")

    def _mark(self) -> None:
        """Say which rows belong together, for an optimiser (`optim.row_blocks`): a query or key head, a neuron of the values."""
        queries, shared, _ = self.split
        blocks = ((queries + shared) * self.head_width, self.head_width), (shared * self.head_width, 1)
        for marked in (self.qkv, self.qkv.weight):  # on the layer too, whose attributes a deep copy keeps
            setattr(marked, "row_blocks", blocks)  # noqa: B010 (mypy forbids the plain form)

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
        mask: bool, [T, T] or [B, 1, T, T], True where query t sees key s; None = causal, or everything when T = 1.
        cache: takes in the keys and values of x, and says which keys are seen, or attends to them itself.
        """
        q, k, v = self.project(x, cos, sin)
        new = q.shape[2]
        if isinstance(cache, Attending):
            return self.output(cache.attend(q, k, v).transpose(1, 2).flatten(2))
        if cache is not None:
            k, v, mask = cache.append(k, v)
            if mask is not None and mask.shape[1] not in (1, self.split[0]):  # of each key head
                mask = mask.repeat_interleave(self.split[0] // mask.shape[1], 1)
        causal = mask is None
        if new == 1:  # it sees all there is; a statement, as the kernel takes no symbolic truth when compiled
            causal = False
        grouped = self.split[1] != self.split[0]
        if self.chunked and cache is None and mask is None:
            mixed = chunked_attention(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, Hk, T, D] of x, turned by their positions."""
        # one `split`, not slices: its backward pass is one concatenation
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split(self.split, dim=2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        # transposed views: the kernel reads them with their strides, and nothing is copied
        q = rotate(self.query_norm(q), cos, sin).transpose(1, 2)
        k = rotate(self.key_norm(k), cos, sin).transpose(1, 2)
        v = v.transpose(1, 2)
        return q, k, v

    def cache_shape(self) -> KeyValueShape:
        """What is kept of each token."""
        return KeyValueShape(self.split[1], self.head_width)

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: query heads, key and value heads, and the width that it reads and writes."""
        (queries, keys, _), each = self.split, self.head_width
        first = queries * each
        return (
            Axis("width", None, self.qkv.in_features, (Slice("qkv.weight", 1), Slice("output.weight", 0))),
            Axis(
                "head",
                None,
                queries,
                (Slice("qkv.weight", 0, 0, each), Slice("output.weight", 1, 0, each)),
                group=queries // keys,
            ),
            Axis(
                "key_value_head",
                None,
                keys,
                (Slice("qkv.weight", 0, first, each), Slice("qkv.weight", 0, first + keys * each, each)),
            ),
        )

    def resized(self) -> None:
        """Take the numbers of heads from the weights, which were cut."""
        self.heads = self.output.in_features // self.head_width
        shared = (self.qkv.out_features // self.head_width - self.heads) // 2
        self.split = (self.heads, shared, shared)
        self._mark()

    def divide(self, parts: int) -> None:
        """Compute an equal part of the heads, as `qkv` gives no others: the rest are other processes'. `heads` stays the number of
        all, which are counted once."""
        queries, keys, values = self.split
        self.split = (queries // parts, keys // parts, values // parts)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        back = shape.backward
        inside = inputs or (
            back and (cost.trains(self.qkv) or cost.trains(self.query_norm) or cost.trains(self.key_norm))
        )
        projected = cost.linear(self.qkv, shape.tokens, back, inputs) + cost.linear(
            self.output, shape.tokens, back, inside
        )
        return projected + self.inner_flops(shape, back and inside)

    def inner_flops(self, shape: Shape, backward: bool) -> int:
        """Operations of attention itself."""
        keys = shape.past + shape.new
        return cost.attention(shape.rows, self.heads, shape.new, keys, self.head_width, backward)
