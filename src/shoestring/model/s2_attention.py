"""S2-Attention: each key head keeps a window and its own shard of the text; together the heads see all of it."""

import math
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract.cost import Shape
from shoestring.method import Count, method
from shoestring.model.attention_heads import AttentionHeads
from shoestring.model.documents import by_document
from shoestring.model.recurrent import Kept, OwnState
from shoestring.model.recurrent_cache import RecurrentState, together
from shoestring.model.tiles import tile_count, tiled


class Shards(NamedTuple):
    """What queries in blocks read. L: blocks of a window, C: tokens of a block.

    k, v: of the window of each block of queries, [B, Hk, n, L C, D]. far_k, far_v: of the shard, [B, Hk, S, D].
    """

    k: Tensor
    v: Tensor
    far_k: Tensor
    far_v: Tensor


class ShardedState(RecurrentState):
    """Of each key head, the latest tokens at their place modulo the window, and its shard."""

    def snapshot(self) -> Any:
        """The window: a shard keeps its tokens at their places, and what follows a row's length is written over."""
        return {name: tensor.clone() for name, tensor in self.tensors.items() if name.startswith("window")}

    def restore(self, snapshot: Any) -> None:
        self.tensors.update({name: tensor.clone() for name, tensor in snapshot.items()})


@method(
    "model",
    kind="token mixer",
    name="s2_attention",
    paper="Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads, arXiv:2407.17678",
    claim="up to 25.3 times as fast as FlashAttention-2 at long contexts with the authors' kernels, quality on par with dense "
    "attention, perfect needle retrieval at 32 thousand tokens",
    cost="two projections as attention; 4 head_width FLOPs a head for each token of the window, and for 1 / stride of all others",
)
class ShardedAttention(OwnState, AttentionHeads):
    """Attention in which key head g sees the latest blocks, and of those before them every `stride`-th, beginning with block g.

    Xihui Lin et al., 2024, arXiv:2407.17678.

    With blocks of C tokens: a query of block i sees block j <= i where i - j < window_blocks, or j mod stride = g mod stride; and
    of these the keys up to its own place. With as many key heads as `stride` or more, each token is seen by some head.
    x: [B, T, width] -> [B, T, width].

    Cost: T² / stride products of scores, and T window. A block that a head may not read is not multiplied. State: of a key head the
    window, and the tokens of its shard; what no head of a group reads is not kept. Shard tokens in the window are kept twice.
    Different from the paper: heads that share keys share a shard, so that the cache can be its size; no kernel, so later blocks of
    the shard are multiplied and masked. The paper has dense layers too: a pattern does that. Packed documents are read apart.

    block: tokens of a block. window_blocks, stride: above. qk_norm, rope_theta, epsilon: as attention has them.
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
        window_blocks: Count = 4,
        stride: Count = 4,
        **inherited: Any,
    ) -> None:
        super().__init__(width, heads, key_value_heads, head_width, **inherited)
        self.block, self.window, self.stride = block, window_blocks, stride

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: ShardedState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: from `Rotary`. documents: [B, T]. cache: of `new_cache`."""
        q, k, v = self.by_heads(x, cos, sin)
        if cache is not None:
            mixed = torch.zeros_like(q)
            for rows, held, new in together(cache.coming):
                a, b, c = (part[rows, :, :new] for part in (q, k, v))
                mixed[rows, :, :new] = self._go_on(a, b, c, cache, rows, held)
            mixed = mixed.transpose(1, 2)
        elif documents is None:
            mixed = self._alone(*(part.transpose(1, 2) for part in (q, k, v)))
        else:
            mixed = by_document(self._alone, documents, [part.transpose(1, 2) for part in (q, k, v)])
        return self.output(mixed.flatten(2))

    def _alone(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, T, Hq, D], of whole texts: q [B, T, Hq, D]; k, v [B, T, Hk, D]."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        blocks = -(-k.shape[2] // self.block)
        k, v = (F.pad(part, (0, 0, 0, blocks * self.block - part.shape[2])) for part in (k, v))
        places = self.places(blocks, k.device).clamp_max(k.shape[2] - 1)
        heads = torch.arange(k.shape[1], device=k.device)[:, None]
        near_k, near_v = (self._windows(F.pad(part, (0, 0, (self.window - 1) * self.block, 0))) for part in (k, v))
        read = Shards(near_k, near_v, k[:, heads, places], v[:, heads, places])
        return self._attend(q, read, 0).transpose(1, 2)

    def places(self, blocks: int, device: torch.device) -> Tensor:
        """[Hk, S]: the places of the shard of each key head in so many blocks; one head's last block may lie behind them."""
        first = torch.arange(self.split[1], device=device) % self.stride
        numbers = first[:, None] + torch.arange(0, blocks, self.stride, device=device)
        return (numbers[..., None] * self.block + torch.arange(self.block, device=device)).flatten(1)

    def _windows(self, part: Tensor) -> Tensor:
        """[B, Hk, n, L C, D] of [B, Hk, (L - 1 + n) C, D]: the window of each block."""
        return part.unfold(2, self.window * self.block, self.block).transpose(-1, -2)

    def _attend(self, q: Tensor, read: Shards, past: int) -> Tensor:
        """[B, Hq, T, D]. q: at places past, past + 1 ..."""
        size, new = self.block, q.shape[2]
        cut = tiled(q / math.sqrt(q.shape[-1]), past, size, read.k.shape[1])
        tiles, at = cut.queries, cut.at
        own = at[:, :1] // size  # [n, 1]
        near = (own - self.window + 1) * size + torch.arange(self.window * size, device=q.device)  # [n, L C]
        far = self.places(-(-(past + new) // size), q.device) // size  # the block of each place, [Hk, S]
        wide = torch.promote_types(q.dtype, torch.float32)
        flat = tiles.flatten(3, 4)  # [B, Hk, n, G c, D]
        close = (flat @ read.k.transpose(-1, -2)).to(wide).unflatten(3, tiles.shape[3:5])
        distant = (flat.flatten(2, 3) @ read.far_k.transpose(-1, -2)).to(wide).unflatten(2, tiles.shape[2:5])
        close = close.masked_fill(((near[:, None] > at[..., None]) | (near[:, None] < 0))[:, None], -math.inf)
        distant = distant.masked_fill((far[:, None] > own - self.window)[:, :, None, None], -math.inf)
        shares = torch.cat((close, distant), -1).softmax(-1).to(read.v.dtype)
        shares, others = shares.split((close.shape[-1], distant.shape[-1]), -1)
        found = (shares.flatten(3, 4) @ read.v).unflatten(3, tiles.shape[3:5])
        found = found + (others.flatten(2, 4) @ read.far_v).unflatten(2, tiles.shape[2:5])
        return cut.untiled(found, past)

    def _go_on(self, q: Tensor, k: Tensor, v: Tensor, cache: ShardedState, rows: slice, held: int) -> Tensor:
        """[b, Hq, new, D] of some rows, which hold as many tokens. The new ones are taken in."""
        size, end = self.block, held + k.shape[2]
        ring, first, last = self.window * self.block, held // size, -(-end // size)
        before = torch.arange((first - self.window + 1) * size, held, device=k.device)
        latest = torch.arange(max(held, end - ring), end, device=k.device)
        places = self.places(last, k.device)  # [Hk, S]
        fresh = (places >= held) & (places < end)
        heads = torch.arange(k.shape[1], device=k.device)[:, None].expand_as(places)
        near, far = [], []
        for name, new in (("keys", k), ("values", v)):
            window, shard = cache.tensors[f"window_{name}"], cache.tensors[f"shard_{name}"]
            text = torch.cat((window[rows][:, :, before % ring].to(new.dtype), new), 2)
            near.append(self._windows(F.pad(text, (0, 0, 0, last * size - end))))
            window[rows, :, latest % ring] = new[:, :, latest - held].to(window.dtype)
            own = shard[rows, :, : places.shape[1]]
            own[:, fresh] = new[:, heads[fresh], places[fresh] - held].to(own.dtype)
            far.append(own.to(new.dtype))
        return self._attend(q, Shards(*near, *far), held)

    def kept(self) -> dict[str, Kept]:
        """Of the window."""
        size = Kept((self.split[1], self.window * self.block, self.head_width))
        return {"window_keys": size, "window_values": size}

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> ShardedState:
        """The state of `rows` rows that have read nothing."""
        tensors = super().new_cache(rows, room, dtype, device).tensors
        size = self.places(-(-room // self.block), device).shape[1]
        for name in ("shard_keys", "shard_values"):
            tensors[name] = torch.zeros(rows, self.split[1], size, self.head_width, dtype=dtype, device=device)
        return ShardedState(tensors)

    def token_bytes(self, dtype: torch.dtype) -> int:
        return -(-2 * self.split[1] * self.head_width * dtype.itemsize // self.stride)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        projected, back = self.projections(shape, inputs)
        if not shape.new:
            return projected
        count, each = tile_count(shape.past, shape.new, self.block)
        queries, last = count * each, -(-(shape.past + shape.new) // self.block)
        keys = (self.window + -(-last // self.stride)) * self.block
        return projected + (3 if back else 1) * 4 * shape.rows * self.heads * queries * keys * self.head_width
