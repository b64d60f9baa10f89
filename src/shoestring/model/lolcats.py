"""LoLCATs' attention: softmax over the latest tokens, linear attention with learnt features over those before them."""

from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.kernels.recurrent import Recurrence
from shoestring.method import method
from shoestring.model.attention import Attention
from shoestring.model.head_map import HeadMap
from shoestring.model.linear_recurrence import linear_recurrence, linear_recurrence_flops
from shoestring.model.recurrent import Kept, OwnState
from shoestring.model.recurrent_cache import RecurrentState
from shoestring.model.rotary import rotate

FIRST_MIX = -2.1972245773362196
"""What the source's code starts with: a share of 0.1."""


@method(
    "model",
    kind="token mixer",
    name="lolcats",
    paper="LoLCATs: On Low-Rank Linearizing of Large Language Models, arXiv:2410.10254",
    claim="put in place of softmax attention and trained to its outputs, models of 8B stay within a few points of the original",
    cost="linear in the length: attention over `window` tokens, and a state of 2 features x (head_width + 1) a query head",
)
class LoLCATsAttention(OwnState, Attention):
    """Softmax attention over a sliding window, and linear attention with learnt features over all before it, in one average.

    Michael Zhang et al., 2024, arXiv:2410.10254, equation 6, and the source's code for sliding windows.

        y_t = (g sum_(t-w < i <= t) exp(s_ti - c_t) v_i + sum_(i <= t-w) phi_q(q_t) . phi_k(k_i) v_i)
            / (g sum_(t-w < i <= t) exp(s_ti - c_t)     + sum_(i <= t-w) phi_q(q_t) . phi_k(k_i)),   s_ti = q_t . k_i / sqrt(d)

    phi(x) = [softmax(W x); softmax(-W x)], of each query head, with x rotated by its position; c_t = max s_ti within the window;
    g = sigmoid(mix), of each head, 0.1 at first. x: [B, T, width] -> [B, T, width]. The projections are those of `Attention`.

    The linear part is plain linear attention whose keys and values come `window` tokens late, so it is computed in chunks; the
    state takes a token in when it leaves the window. State of a row: that, and keys and values of `window` tokens.

    features: rows of W, of each head. window: w, tokens that are attended to exactly. The other options are those of `attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        features: Annotated[int, Interval(ge=1, le=1024)] = 64,
        window: Annotated[int, Interval(ge=1, le=65536)] = 64,
        **inherited: Any,
    ) -> None:
        super().__init__(width, heads, key_value_heads, head_width, **inherited)
        self.features, self.window = features, window
        self.query_map = HeadMap(heads, head_width, features)
        self.key_map = HeadMap(heads, head_width, features)
        self.mix = nn.Parameter(torch.full((heads,), FIRST_MIX))

    def forward(  # type: ignore[override]
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. documents: [B, T]. cache: of `new_cache`."""
        q, k, v = self.projected(x, cos, sin)
        return self.output(self.mixed(q, k, v, documents, cache).flatten(2))

    def projected(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, d], keys and values [B, T, Hk, d], normed and rotated as in `Attention`."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split(self.split, dim=2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        return rotate(self.query_norm(q), cos, sin), rotate(self.key_norm(k), cos, sin), v

    def mixed(
        self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """[B, T, H, d], of what `projected` gives: all but the last projection."""
        rows, length, _, each = q.shape
        groups = self.split[0] // self.split[1]
        v = torch.cat(
            (v, torch.ones_like(v[..., :1])), -1
        )  # the last column sums up the weights; 0 where there is no token
        before = rows, self.window, self.split[1]
        if cache is None:
            past_keys, past_values = k.new_zeros(*before, each), v.new_zeros(*before, each + 1)
        else:
            past_keys, past_values = cache.tensors["keys"].to(k.dtype), cache.tensors["values"].to(v.dtype)
        keys, values = torch.cat((past_keys, k), 1), torch.cat((past_values, v), 1)
        near = self._window(q, keys, values, documents)
        late_keys, late_values = (each[:, :length].repeat_interleave(groups, 2) for each in (keys, values))
        if documents is not None:  # a token that comes late is of the document that was read then
            then = F.pad(documents, (self.window, 0), value=-1)[:, :length]
            late_values = late_values * (then == documents)[..., None, None]
        if cache is not None and cache.real is not None:
            late_values = late_values * cache.real[..., None, None]
        far, last = linear_recurrence(
            _features(self.query_map(q)),
            _features(self.key_map(late_keys)),
            late_values,
            torch.zeros((), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device).expand(
                rows, length, self.split[0]
            ),
            state=None if cache is None or cache.fresh else cache.tensors["state"],
            documents=documents,
            keep=cache is not None,
        )
        if cache is not None and last is not None:
            cache.tensors["state"] = last.to(cache.tensors["state"].dtype)
            for name, whole in (("keys", keys), ("values", values)):
                cache.tensors[name] = cache.last(whole, self.window).to(cache.tensors[name].dtype)
        total = near + far
        return (total[..., :each] / total[..., each:]).to(q.dtype)

    def _window(self, q: Tensor, keys: Tensor, values: Tensor, documents: Tensor | None) -> Tensor:
        """[B, T, H, d + 1]: the exact part and its weights' sum, of `window` tokens before those of the pass and these."""
        rows, length, heads, each = q.shape
        size, (count, padding) = min(self.window, length), self._chunks(length)
        wide = torch.promote_types(q.dtype, torch.float32)
        q, keys, values = (F.pad(one, (0, 0, 0, 0, 0, padding)) for one in (q, keys, values))
        # [B, n, Hk, G C, d] and [B, n, Hk, d, w + C]: each chunk of queries sees a stretch of keys
        asked = q.unflatten(1, (count, size)).unflatten(3, (self.split[1], -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)
        told = keys.unfold(1, self.window + size, size)
        seen = values.unfold(1, self.window + size, size)
        scores = (asked @ told).to(wide) * each**-0.5
        scores = scores.unflatten(3, (-1, size))  # [B, n, Hk, G, C, w + C]
        place = torch.arange(self.window + size, device=q.device)
        behind = place[self.window :, None] - place
        visible = (behind >= 0) & (behind < self.window)
        real = seen[:, :, :, -1] > 0  # [B, n, Hk, w + C]
        allowed = visible & (real[:, :, :, None, None] | (behind == 0))  # padding sees itself, so that it is a number
        if documents is not None:
            own = F.pad(documents, (0, padding), value=-1).unflatten(1, (count, size))
            theirs = F.pad(documents, (self.window, padding), value=-1).unfold(1, self.window + size, size)
            allowed = allowed & (own[..., None] == theirs[:, :, None])[:, :, None, None]
        scores = scores.masked_fill(~allowed, -torch.inf)
        weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
        weights = weights * self.mix.to(wide).sigmoid().view(self.split[1], -1, 1, 1)
        found = weights.to(values.dtype).flatten(3, 4) @ seen.transpose(-1, -2)  # [B, n, Hk, G C, d + 1]
        found = found.unflatten(3, (-1, size)).permute(0, 1, 4, 2, 3, 5)
        return found.reshape(rows, count * size, heads, each + 1)[:, :length]

    def _chunks(self, length: int) -> tuple[int, int]:
        """(chunks of queries, places of the last one that are empty)."""
        size = min(self.window, length)
        count = -(-length // size)
        return count, count * size - length

    def kept(self) -> dict[str, Kept]:
        """The sums of the linear part, and a window of keys and values, each value with a 1 beside it."""
        each, shared = self.head_width, self.split[1]
        return {
            "state": Kept((self.split[0], 2 * self.features, each + 1), "wide"),
            "keys": Kept((self.window, shared, each)),
            "values": Kept((self.window, shared, each + 1)),
        }

    def native_recurrence(self) -> Recurrence:
        """As the native library reads it."""
        arrays = {"query_map": self.query_map.weight, "key_map": self.key_map.weight, "mix": self.mix}
        return Recurrence(
            "lolcats",
            self.split[0],
            2 * self.features,
            self.head_width + 1,
            self.qkv.out_features,
            {name: tensor.detach() for name, tensor in arrays.items()},
            ("state", "keys", "values"),
            shared=self.split[1],
            window=self.window,
        )

    def axes(self) -> tuple[Axis, ...]:
        """As `Attention.axes`, with the maps and mixes of the query heads."""
        width, head, shared = super().axes()
        own = tuple(Slice(name, 0) for name in ("query_map.weight", "key_map.weight", "mix"))
        return (width, Axis("head", None, head.size, (*head.slices, *own), group=head.group), shared)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        back = shape.backward
        inside = inputs or (back and any(cost.trains(one) for one in (self.qkv, self.query_norm, self.key_norm)))
        first = cost.linear(self.qkv, shape.tokens, back, inputs)
        last = cost.linear(
            self.output, shape.tokens, back, inside or cost.trains(self.query_map) or cost.trains(self.key_map)
        )
        return first + last + self.mixed_flops(shape, inside)

    def mixed_flops(self, shape: Shape, inputs: bool) -> int:
        """Operations of `mixed`. inputs: whether queries, keys and values take a gradient."""
        back, heads, each = shape.backward, self.split[0], self.head_width
        total = sum(
            cost.matrix_product(one.weight, shape.tokens * heads, back, inputs)
            for one in (self.query_map, self.key_map)
        )
        if not shape.new:
            return total
        inside = back and (inputs or cost.trains(self.query_map) or cost.trains(self.key_map))
        size, (count, _) = min(self.window, shape.new), self._chunks(shape.new)
        square = 2 * shape.rows * heads * count * size * (self.window + size)
        total += square * (2 * each + 1) * (3 if inside else 1)
        return total + linear_recurrence_flops(
            shape.rows, shape.new, heads, 2 * self.features, each + 1, inside, past=shape.past
        )


def _features(made: Tensor) -> Tensor:
    """[softmax(z); softmax(-z)] of z [..., features]."""
    return torch.cat((made.softmax(-1), (-made).softmax(-1)), -1)
