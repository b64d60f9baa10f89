"""InfLLM-v2: each query attends to a few blocks of the text, found by the mean key of each block."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cache import PackedPass, Pass
from shoestring.contract.cost import Shape
from shoestring.method import Count, Whole, method
from shoestring.model.attention_heads import AttentionHeads
from shoestring.model.documents import by_document
from shoestring.model.recurrent import OwnState
from shoestring.model.recurrent_cache import require_order, together

QUERIES = 64
"""Queries whose blocks are gathered at once."""


class PooledKeyValues:
    """Keys and values of every token, [B, Hk, room, D] each, and the mean key of every block, [B, Hk, room / block, D]."""

    rewindable = True

    def __init__(self, keys: Tensor, values: Tensor, means: Tensor) -> None:
        self._keys, self._values, self._means = keys, values, means
        self._block = keys.shape[2] // means.shape[2]
        self.coming: Pass | None = None

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes + self._means.nbytes

    def begin(self, coming: Pass | PackedPass) -> None:
        require_order(coming)
        assert isinstance(coming, Pass)
        self.coming = coming

    def append(self, rows: slice, held: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take in k and v [b, Hk, new, D] of some rows. Returns what they hold then, in whole blocks: keys, values, means."""
        end = held + k.shape[2]
        self._keys[rows, :, held:end], self._values[rows, :, held:end] = k, v
        first, last = held // self._block, -(-end // self._block)
        touched = self._keys[rows, :, first * self._block : last * self._block]
        self._means[rows, :, first:last] = touched.unflatten(2, (-1, self._block)).mean(3)
        places = last * self._block
        return self._keys[rows, :, :places], self._values[rows, :, :places], self._means[rows, :, :last]

    def take(self, rows: Tensor) -> Self:
        return type(self)(self._keys[rows], self._values[rows], self._means[rows])

    def crop(self, lengths: Sequence[int]) -> None:
        """Nothing to do: what follows a row's length is not seen and is written over, as is the mean of a block not full."""

    def snapshot(self) -> Any:
        """Nothing, as above."""

    def restore(self, snapshot: Any) -> None:
        """Nothing, as above."""


@method(
    "model",
    kind="token mixer",
    name="infllm_v2",
    paper="MiniCPM4: Ultra-Efficient LLMs on End Devices, arXiv:2506.07900; InfLLM-V2: Dense-Sparse Switchable Attention for "
    "Seamless Short-to-Long Adaptation, arXiv:2509.24663",
    claim="at 128 thousand tokens a token attends to less than 5 % of the others, and prefill and decoding are faster than dense",
    cost="two projections as attention; heads x head_width FLOPs: 2 a block of the text to choose, 4 a token of the chosen to read",
)
class InfLLMv2(OwnState, AttentionHeads):
    """Attention to the first blocks, the latest ones, and those whose mean key answers a query best. It adds no weights.

    MiniCPM team, 2025, arXiv:2506.07900; Weilin Zhao et al., 2025, arXiv:2509.24663.

    Of n blocks of C tokens, with M_j the mean of the keys of block j: s_j = sum over the heads that share a key head of
    softmax_j(q_h M_j / sqrt(d)), j before the query's own block. A query sees the first `first_blocks`, the last `window_blocks`
    (its own among them) and the best of the others, `first_blocks` + `window_blocks` + `top_blocks` in all, and of these the keys
    up to its own place: softmax attention. Queries before place `dense_length` see all. x: [B, T, width] -> [B, T, width].

    Cost: linear in the length, but for 2 T n heads head_width FLOPs to choose. State: keys and values, and a mean key a block.
    Different from the paper: one mean a block, where it takes the largest of several overlapping ones; the choice between dense
    and sparse is made by the place of a query, so that decoding equals reading at once; no kernel: the chosen blocks of 64 queries
    are gathered at a time, and kept for the backward pass. Packed documents are read apart.

    block: tokens of a block. first_blocks, window_blocks, top_blocks, dense_length: above.
    qk_norm, rope_theta, epsilon: as attention has them, so that its weights serve here.
    """

    compiles = False

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        block: Annotated[int, Interval(ge=1, le=4096)] = 64,
        first_blocks: Whole = 1,
        window_blocks: Count = 8,
        top_blocks: Whole = 16,
        dense_length: Whole = 1024,
        **inherited: Any,
    ) -> None:
        super().__init__(width, heads, key_value_heads, head_width, **inherited)
        self.block, self.first, self.window, self.dense = block, first_blocks, window_blocks, dense_length
        self.seen = first_blocks + window_blocks + top_blocks

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: PooledKeyValues | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: from `Rotary`. documents: [B, T]. cache: of `new_cache`."""
        q, k, v = self.by_heads(x, cos, sin)
        if cache is not None:
            assert cache.coming is not None
            mixed = torch.zeros_like(q)
            for rows, held, new in together(cache.coming):
                kept = cache.append(rows, held, k[rows, :, :new], v[rows, :, :new])
                mixed[rows, :, :new] = self._attend(q[rows, :, :new], *kept, held)
            mixed = mixed.transpose(1, 2)
        elif documents is None:
            mixed = self._alone(*(part.transpose(1, 2) for part in (q, k, v)))
        else:
            mixed = by_document(self._alone, documents, [part.transpose(1, 2) for part in (q, k, v)])
        return self.output(mixed.flatten(2))

    def _alone(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, T, Hq, D], of whole texts: q [B, T, Hq, D]; k, v [B, T, Hk, D]."""
        padding = -k.shape[1] % self.block
        q, k, v = q.transpose(1, 2), *(F.pad(part, (0, 0, 0, 0, 0, padding)).transpose(1, 2) for part in (k, v))
        means = k.detach().unflatten(2, (-1, self.block)).mean(3)
        return self._attend(q, k, v, means, 0).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, means: Tensor, past: int) -> Tensor:
        """[B, Hq, T, D]. q: at places past, past + 1 ... k, v: [B, Hk, n C, D], of all places. means: [B, Hk, n, D]."""
        new = q.shape[2]
        near = min(max(self.dense - past, 0), new)
        found = []
        if near:
            end = past + near
            mask = None
            if past and near > 1:
                mask = torch.ones(near, end, dtype=torch.bool, device=q.device).tril(past)
            found.append(
                F.scaled_dot_product_attention(
                    q[:, :, :near],
                    k[:, :, :end],
                    v[:, :, :end],
                    attn_mask=mask,
                    is_causal=mask is None and near > 1,
                    enable_gqa=True,
                )
            )
        k, v = (part.unflatten(2, (-1, self.block)) for part in (k, v))
        for first in range(near, new, QUERIES):
            own = q[:, :, first : first + QUERIES].unflatten(1, (k.shape[1], -1)).transpose(2, 3)  # [B, Hk, c, G, D]
            places = torch.arange(past + first, past + first + own.shape[2], device=q.device)
            found.append(self._some(own, k, v, self.choose(own, means, places), places))
        return torch.cat(found, 2)

    @torch.no_grad()
    def choose(self, q: Tensor, means: Tensor, places: Tensor) -> Tensor:
        """The numbers of the blocks that queries see, [B, Hk, c, K], among them later ones where there are not as many before.

        q: [B, Hk, c, G, D]. means: [B, Hk, n, D]. places: [c], of the queries.
        """
        wide = torch.promote_types(q.dtype, torch.float32)
        numbers, own = torch.arange(means.shape[2], device=q.device), places[:, None] // self.block
        scores = (q @ means[:, :, None].transpose(-1, -2)).to(wide) / math.sqrt(q.shape[-1])
        shares = scores.masked_fill((numbers >= own)[:, None], -math.inf).softmax(-1).nan_to_num(0.0).sum(3)
        shares = shares.masked_fill((numbers < self.first) | (numbers > own - self.window), math.inf)
        shares = shares.masked_fill(numbers > own, -math.inf)
        return shares.topk(min(self.seen, len(numbers)), -1).indices

    def _some(self, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, places: Tensor) -> Tensor:
        """[B, Hq, c, D]: attention of q [B, Hk, c, G, D] to chosen [B, Hk, c, K] of the blocks k, v [B, Hk, n, C, D]."""
        rows = torch.arange(k.shape[0], device=k.device)[:, None, None, None]
        heads = torch.arange(k.shape[1], device=k.device)[:, None, None]
        k, v = (part[rows, heads, chosen].flatten(3, 4) for part in (k, v))  # [B, Hk, c, K C, D]
        at = (chosen[..., None] * self.block + torch.arange(self.block, device=k.device)).flatten(3)
        scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill((at > places[:, None])[:, :, :, None], -math.inf)
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(2, 3).flatten(1, 2)

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> PooledKeyValues:
        """The state of `rows` rows that have read nothing."""
        blocks, (_, heads, _) = -(-room // self.block), self.split
        size = rows, heads, blocks * self.block, self.head_width
        keys, values = torch.zeros(2, *size, dtype=dtype, device=device)
        return PooledKeyValues(keys, values, keys.new_zeros(rows, heads, blocks, self.head_width))

    def token_bytes(self, dtype: torch.dtype) -> int:
        each = self.split[1] * self.head_width * dtype.itemsize
        return 2 * each + -(-each // self.block)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        projected, back = self.projections(shape, inputs)
        near = min(max(self.dense - shape.past, 0), shape.new)
        dense = cost.attention(shape.rows, self.heads, near, shape.past + near, self.head_width, back)
        blocks = -(-(shape.past + shape.new) // self.block)
        each = 2 * shape.rows * self.heads * (shape.new - near) * self.head_width
        read = (3 if back else 1) * 2 * min(self.seen, blocks) * self.block
        return projected + dense + each * (blocks + read)
