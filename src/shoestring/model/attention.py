"""Causal self-attention with grouped queries, rotary positions and normalised queries and keys."""

from typing import Annotated

from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.method import Epsilon, method
from shoestring.model import flops
from shoestring.model.chunked import chunked_attention
from shoestring.model.norm import RMSNorm
from shoestring.model.rotary import rotate


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
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.rope_theta = heads, head_width, rope_theta
        self.chunked = False
        """Whether training uses `chunked_attention`; `train.execution` decides that by measuring."""
        self.split = (heads, key_value_heads, key_value_heads)
        self.qkv = nn.Linear(width, sum(self.split) * head_width, bias=False)
        # which rows belong together, for an optimiser (`optim.row_blocks`): a query or key head, a neuron of the values;
        # on the layer too, whose attributes a deep copy keeps
        blocks = ((heads + key_value_heads) * head_width, head_width), (key_value_heads * head_width, 1)
        for marked in (self.qkv, self.qkv.weight):
            setattr(marked, "row_blocks", blocks)  # noqa: B010 (mypy forbids the plain form)
        self.query_norm = RMSNorm(head_width, epsilon=epsilon) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(head_width, epsilon=epsilon) if qk_norm else nn.Identity()
        self.output = nn.Linear(heads * head_width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width].

        cos, sin: from `Rotary`. mask: bool, [T, S] or [B, 1, T, S], True where query t sees key s; None = causal, or
        everything when T = 1. cache: from `KeyValueCache.layer`: S keys and values, whose last T are filled in here.
        """
        # one `split`, not slices: its backward pass is one concatenation
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split(self.split, dim=2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        # transposed views: the kernel reads them with their strides, and nothing is copied
        q = rotate(self.query_norm(q), cos, sin).transpose(1, 2)
        k = rotate(self.key_norm(k), cos, sin).transpose(1, 2)
        v = v.transpose(1, 2)
        new = q.shape[2]
        if cache is not None:
            keys, values = cache
            keys[:, :, -new:] = k
            values[:, :, -new:] = v
            k, v = keys, values
        causal = mask is None
        if new == 1:  # it sees all there is; a statement, as the kernel takes no symbolic truth when compiled
            causal = False
        grouped = self.split[1] != self.heads
        if self.chunked and cache is None and mask is None:
            mixed = chunked_attention(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def flops(self, batch: int, length: int, backward: bool, past: int = 0) -> int:
        """Operations on `length` tokens that follow `past` cached ones; the convention is in `model.flops`."""
        projections = (flops.linear(layer, batch * length, backward) for layer in (self.qkv, self.output))
        square = flops.attention(batch, self.heads, length, past + length, self.head_width, backward)
        return sum(projections) + square
