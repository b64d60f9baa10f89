"""SUPRA's attention: linear attention with a learnt kernel, a fixed decay and a norm in place of the softmax."""

from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.kernels.recurrent import Norm, Recurrence
from shoestring.method import Epsilon, method
from shoestring.model.attention import Attention
from shoestring.model.head_map import HeadMap
from shoestring.model.linear_recurrence import CHUNK, linear_recurrence, linear_recurrence_flops
from shoestring.model.recurrent import Kept, OwnState
from shoestring.model.recurrent_cache import RecurrentState
from shoestring.model.rotary import rotate


@method(
    "model",
    kind="token mixer",
    name="supra",
    paper="Linearizing Large Language Models, arXiv:2405.06640",
    claim="in place of softmax attention, and trained on with 5 % of the tokens, competitive on standard benchmarks with other "
    "recurrent models; short of the original in context and at length",
    cost="linear in the length: the projections of attention, 2 maps a head, and a state of head_width² a query head",
)
class SUPRAAttention(OwnState, Attention):
    """Linear attention over rotated, rectified features of queries and keys, with a fixed decay, normed head by head.

    Jean Mercat et al., 2024, arXiv:2405.06640, and the source's code.

        q' = R_t relu(W_q q + b_q),  k' = R_t relu(W_k k + b_k),  o_t = sum_(i <= t) gamma_h^(t - i) (q'_t . k'_i) / sqrt(d) v_i,
        y_t = W_out LayerNorm(o_t)

    R_t turns by the position. gamma_h = exp(-2^(-8 h / H)), h = 1..H. The norm is that of each head by itself, without a gain (the
    source's group norm). It takes the place of a softmax's sum, as rotated features may be below zero. x: [B, T, width] ->
    [B, T, width]. State of a row: H x d x d numbers.

    Different from the source's code: the maps W are of each head, where it maps the features of all heads together, and they begin
    as the identity; with `qk_norm`, queries and keys are normed before the map, where the original norms them.

    epsilon: of the norms. chunk: tokens of a chunk, which changes the speed alone. The other options are those of `attention`.
    """

    decay: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        chunk: Annotated[int, Interval(ge=1, le=4096)] = CHUNK,
        epsilon: Epsilon = 1e-6,
        **inherited: Any,
    ) -> None:
        super().__init__(width, heads, key_value_heads, head_width, epsilon=epsilon, **inherited)
        self.chunk, self.epsilon = chunk, epsilon
        self.query_map = HeadMap(heads, head_width, head_width, bias=True, identity=True)
        self.key_map = HeadMap(key_value_heads, head_width, head_width, bias=True, identity=True)
        # kept with the weights, so that a head that stays when others go keeps its own
        self.register_buffer("decay", torch.exp2(-8 * torch.arange(1, heads + 1) / heads))

    def forward(  # type: ignore[override]
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. documents: [B, T]. cache: of `new_cache`."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split(self.split, dim=2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q = rotate(F.relu(self.query_map(self.query_norm(q))), cos, sin)
        k = rotate(F.relu(self.key_map(self.key_norm(k))), cos, sin) * self.head_width**-0.5
        groups = self.split[0] // self.split[1]
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        decay = -self.decay.to(torch.promote_types(q.dtype, torch.float32)).expand(*q.shape[:3])
        state = None
        if cache is not None:
            if cache.real is not None:
                k, decay = k * cache.real[..., None, None], decay * cache.real[..., None]
            state = None if cache.fresh else cache.tensors["state"]
        o, last = linear_recurrence(
            q, k, v, decay, state=state, documents=documents, keep=cache is not None, chunk=self.chunk
        )
        if cache is not None and last is not None:
            cache.tensors["state"] = last.to(cache.tensors["state"].dtype)
        return self.output(F.layer_norm(o, o.shape[-1:], eps=self.epsilon).flatten(2))

    def kept(self) -> dict[str, Kept]:
        """The sums of keys with values."""
        return {"state": Kept((self.split[0], self.head_width, self.head_width), "wide")}

    def native_recurrence(self) -> Recurrence:
        """As the native library reads it."""
        maps = {"query": self.query_map, "key": self.key_map}
        arrays = {f"{name}_map": one.weight.detach() for name, one in maps.items()}
        arrays |= {f"{name}_bias": one.bias.detach() for name, one in maps.items() if one.bias is not None}
        each, columns, arrays["decay"] = self.head_width, self.qkv.out_features, self.decay
        norm = Norm(None, self.epsilon)
        return Recurrence("supra", self.split[0], each, each, columns, arrays, shared=self.split[1], norm=norm)

    def axes(self) -> tuple[Axis, ...]:
        """As `Attention.axes`, with the maps and decays of the heads."""
        width, head, shared = super().axes()
        own = tuple(Slice(name, 0) for name in ("query_map.weight", "query_map.bias", "decay"))
        theirs = tuple(Slice(name, 0) for name in ("key_map.weight", "key_map.bias"))
        return (
            width,
            Axis("head", None, head.size, (*head.slices, *own), group=head.group),
            Axis("key_value_head", None, shared.size, (*shared.slices, *theirs)),
        )

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        back, (heads, shared, _), each = shape.backward, self.split, self.head_width
        inside = inputs or (back and any(cost.trains(one) for one in (self.qkv, self.query_norm, self.key_norm)))
        total = cost.linear(self.qkv, shape.tokens, back, inputs)
        total += cost.matrix_product(self.query_map.weight, shape.tokens * heads, back, inside)
        total += cost.matrix_product(self.key_map.weight, shape.tokens * shared, back, inside)
        inside = inside or (back and (cost.trains(self.query_map) or cost.trains(self.key_map)))
        total += cost.linear(self.output, shape.tokens, back, inside)
        return total + linear_recurrence_flops(
            shape.rows, shape.new, heads, each, each, back and inside, past=shape.past, chunk=self.chunk
        )
