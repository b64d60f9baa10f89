"""Mixture of sparse attention: each sparse head chooses the tokens that it reads and writes, beside a few dense heads."""

import math
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.contract.model import LOSS, Notes
from shoestring.method import Count, Epsilon, NonNegative, method
from shoestring.model.attention_heads import AttentionHeads
from shoestring.model.cache import KeyValueShape, contiguous_layer
from shoestring.model.recurrent import OwnState
from shoestring.model.recurrent_cache import LayerStates, RecurrentState
from shoestring.model.rotary import rotate
from shoestring.model.routing import Gate
from shoestring.model.stacked_linear import StackedLinear


class SilentStack(StackedLinear):
    """Starts at zero, as all that writes to the residual stream does."""

    @torch.no_grad()
    def draw(self) -> None:
        self.weight.zero_()


@method(
    "model",
    kind="token mixer",
    name="mosa",
    paper="Mixture of Sparse Attention: Content-Based Learnable Sparse Attention via Expert-Choice Routing, arXiv:2505.00315",
    claim="up to 27 % better perplexity than dense heads at the same compute, with fewer keys and values, in language models",
    cost="that of the dense heads; a sparse head of k tokens: 8 k width head_width FLOPs to project, 4 k² head_width to attend",
)
class MixtureOfSparseAttention(OwnState, AttentionHeads):
    """The model's heads are dense; each of `sparse_heads` more attends among the tokens that its router scores highest.

    Piotr Piekos, Robert Csordas and Juergen Schmidhuber, 2025, arXiv:2505.00315.

    Of a sparse head: r = W_r x [T]; I = the k = ceil(share T) tokens of the largest r; q, k, v = W x_I, turned by the tokens' own
    positions; a = softmax attention among I, each seeing itself and those before it; y_I += sigmoid(r_I) W_out a.
    x: [B, T, width] -> [B, T, width].

    The k best of a text are known at its end only. So when it does not train, a head takes each token with r > 0 as it comes; a
    term of the loss teaches that: the cross-entropy of sigmoid(r) with 'was chosen'. Decoding then equals reading at once.

    Cost: without a backward pass it depends on the text; that of all tokens is stated then. State: keys and values of the dense
    heads, and of each sparse head those of the tokens it took.
    Different from the paper: that choice and its term; the first token is nothing special.

    sparse_heads: how many. share: of the tokens, while training. loss: coefficient of the term.
    qk_norm, rope_theta, epsilon: of the dense heads, as attention has them; sparse heads have the same positions and no norms.
    """

    compiles = False
    tells = True
    looks_ahead = True

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        sparse_heads: Count = 8,
        share: Annotated[float, Interval(gt=0, le=1)] = 0.0625,
        loss: NonNegative = 0.01,
        qk_norm: bool = True,
        rope_theta: Annotated[float, Interval(gt=0, le=1e12)] = 10000.0,
        epsilon: Epsilon = 1e-6,
    ) -> None:
        super().__init__(
            width, heads, key_value_heads, head_width, qk_norm=qk_norm, rope_theta=rope_theta, epsilon=epsilon
        )
        self.sparse_heads, self.share, self.loss = sparse_heads, share, loss
        self.router = Gate(width, sparse_heads)
        self.sparse_qkv = StackedLinear(sparse_heads, width, 3 * head_width)
        self.sparse_output = SilentStack(sparse_heads, head_width, width)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: LayerStates | None = None
    ) -> tuple[Tensor, Notes]:
        """(y [B, T, width], notes) of x. cos, sin: from `Rotary`. documents: [B, T]. cache: of `new_cache`."""
        dense, sparse = (None, None) if cache is None else cache.each
        q, k, v = self.by_heads(x, cos, sin)
        mask = None
        if dense is not None:
            k, v, mask = dense.append(k, v)
        elif documents is not None:
            mask = ((documents[:, :, None] == documents[:, None, :]) & _before(x.shape[1], x.device))[:, None]
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=True
        )
        y = self.output(mixed.transpose(1, 2).flatten(2))
        scores = self.router(x).transpose(1, 2)  # [B, Hs, T]
        if not self.training:
            return y + self._sparse(x, cos, sin, scores, *self._above(scores, sparse), documents, sparse), {}
        places = scores.topk(max(1, math.ceil(self.share * x.shape[1])), -1).indices.sort(-1).values
        notes: Notes = {}
        if self.loss:
            chosen = torch.zeros_like(scores).scatter(2, places, 1.0)
            notes[f"{LOSS}choice"] = self.loss * F.binary_cross_entropy_with_logits(scores, chosen)
        return y + self._sparse(x, cos, sin, scores, places, None, documents, None), notes

    @staticmethod
    def _above(scores: Tensor, cache: RecurrentState | None) -> tuple[Tensor, Tensor]:
        """(places [B, Hs, m] of tokens with a score above 0, in order, filled up with others; how many are such [B, Hs])."""
        chosen = scores > 0
        if cache is not None and cache.real is not None:
            chosen &= cache.real[:, None]
        counts = chosen.sum(-1)
        return chosen.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[..., : int(counts.max())], counts

    def _sparse(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        scores: Tensor,
        places: Tensor,
        counts: Tensor | None,
        documents: Tensor | None,
        cache: RecurrentState | None,
    ) -> Tensor:
        """What the sparse heads write, [B, T, width]. places: [B, Hs, m]. counts: how many of them count; None: all."""
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        if not places.shape[2]:
            return torch.zeros_like(x)
        projected = torch.einsum("bhmw,how->bhmo", x[rows, places], self.sparse_qkv.weight.to(x.dtype))
        q, k, v = projected.chunk(3, -1)
        cos, sin = (
            (table[places] if table.ndim == 3 else table[rows, places])[..., 0, :].to(q.dtype) for table in (cos, sin)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mask = None
        if documents is not None:
            own = documents[rows, places]
            mask = (own[..., :, None] == own[..., None, :]) & _before(places.shape[2], x.device)
            mask |= torch.eye(places.shape[2], dtype=torch.bool, device=x.device)
        if cache is not None:
            assert counts is not None
            k, v, mask = self._append(cache, k, v, counts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1)
        written = torch.einsum("bhmd,hwd->bhmw", mixed, self.sparse_output.weight.to(mixed.dtype))
        written = written * scores.gather(2, places).sigmoid()[..., None].to(mixed.dtype)
        if counts is not None:
            real = torch.arange(places.shape[2], device=x.device) < counts[..., None]
            written = written.masked_fill(~real[..., None], 0.0)
        index = places.flatten(1)[..., None].expand(-1, -1, x.shape[2])
        return torch.zeros_like(x).scatter_add(1, index, written.flatten(1, 2).to(x.dtype))

    @staticmethod
    def _append(cache: RecurrentState, k: Tensor, v: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take in the first `counts` of k and v [B, Hs, m, D]. Returns all keys and values [B, Hs, S, D], and who sees which."""
        held, more = cache.tensors["counts"], k.shape[2]
        at = held[..., None] + torch.arange(more, device=k.device)
        room = int((held + counts).max())
        for name, new in (("keys", k), ("values", v)):
            old = cache.tensors[name]
            grown = F.pad(old, (0, 0, 0, max(0, room - old.shape[2]) + more))  # what does not count falls off the end
            spare = torch.where(at < (held + counts)[..., None], at, grown.shape[2] - 1)
            index = spare[..., None].expand(-1, -1, -1, k.shape[3])
            cache.tensors[name] = grown.scatter(2, index, new.to(grown.dtype))[:, :, : max(room, old.shape[2])]
        cache.tensors["counts"] = held + counts
        k, v = cache.tensors["keys"].to(k.dtype), cache.tensors["values"].to(v.dtype)
        mask = torch.arange(k.shape[2], device=k.device) <= at[..., None]
        return k, v, mask

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> LayerStates:
        """The state of `rows` rows that have read nothing. That of the sparse heads grows as they take tokens."""
        dense = contiguous_layer(KeyValueShape(self.split[1], self.head_width), rows, room, dtype, device)
        none = torch.zeros(rows, self.sparse_heads, 0, self.head_width, dtype=dtype, device=device)
        counts = torch.zeros(rows, self.sparse_heads, dtype=torch.int64, device=device)
        return LayerStates([dense, RecurrentState({"keys": none, "values": none, "counts": counts})])

    def state_bytes(self, dtype: torch.dtype) -> int:
        return 8 * self.sparse_heads

    def token_bytes(self, dtype: torch.dtype) -> int:
        """The most that a token takes: every sparse head may take it."""
        return 2 * (self.split[1] + self.sparse_heads) * self.head_width * dtype.itemsize

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: those of the dense heads, and the width."""
        width, *others = super().axes()
        own = (Slice("router.weight", 1), Slice("sparse_qkv.weight", 2), Slice("sparse_output.weight", 1))
        return (Axis("width", None, width.size, width.slices + own), *others)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        projected, back = self.projections(shape, inputs)
        keys = shape.past + shape.new
        dense = cost.attention(shape.rows, self.heads, shape.new, keys, self.head_width, back)
        each = max(1, math.ceil(self.share * shape.new)) if shape.backward else shape.new
        tokens, back = shape.rows * self.sparse_heads * each, shape.backward
        inside = inputs or (back and (cost.trains(self.sparse_qkv) or cost.trains(self.router)))
        sparse = cost.linear(self.router, shape.tokens, back, inputs)
        sparse += cost.linear(self.sparse_qkv, tokens, back, inputs)
        sparse += cost.linear(self.sparse_output, tokens, back, inside)
        seen = each if back else keys
        return (
            projected
            + dense
            + sparse
            + cost.attention(shape.rows, self.sparse_heads, each, seen, self.head_width, back and inside)
        )


def _before(length: int, device: Any) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
