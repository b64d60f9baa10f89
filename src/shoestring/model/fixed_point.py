"""Fixed-point attention: a token asks again with what it was answered, until the answer stays."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.cost import Shape
from shoestring.contract.grouped_attention import grouped_attention
from shoestring.contract.model import Notes
from shoestring.method import Epsilon, NonNegative, method
from shoestring.model.attention_heads import AttentionHeads
from shoestring.model.cache import KeyValueShape, contiguous_layer
from shoestring.model.recurrent import OwnState
from shoestring.model.recurrent_cache import LayerStates, require_order
from shoestring.model.rotary import rotate


class HeldOnce(LayerStates):
    """Keys and values that are asked several times in a pass, and so cannot lie in a cache that attends by itself."""

    def begin(self, coming: object) -> None:
        require_order(coming)  # type: ignore[arg-type]
        super().begin(coming)  # type: ignore[arg-type]


@method(
    "model",
    kind="token mixer",
    name="fixed_point",
    paper="Change of Thought: Adaptive Test-Time Computation, arXiv:2507.13569",
    claim="up to 20 % better accuracy on encoder benchmarks with no parameters more, at a modest additional compute",
    cost="attention once for the first answer and once for each refinement, at most `most`, with two projections of queries",
)
class FixedPointAttention(OwnState, AttentionHeads):
    """Attention whose queries are made anew from the token and the answer, again and again; keys and values stay.

    Mrinal Mathur et al., 2025, arXiv:2507.13569.

    z_0 = A(W_q x); z_i = A(W_q (x + W_out z_{i-1})), A(q) = softmax(q K^T / sqrt(head_width)) V, causal. A token stops at the first
    i where |z_i - z_{i-1}| <= tolerance |z_{i-1}| over all its heads, or at i = most - 1; then y = W_out A(W_q (x + W_out z)).
    x: [B, T, width] -> ([B, T, width], notes): 'iterations', the mean of i + 1 over the tokens.

    A new layer, whose W_out is zero, is plain attention. Gradients go through the last application alone. While it trains, all
    refinements are computed, though tokens that stopped keep their answer, so that a step costs what was said.

    Cost: without a backward pass it depends on the text; that of `most` refinements is stated.
    Different from the paper, which is of encoders: keys and values stay as they are, so that a token can be decoded after others
    have stopped; each token stops by itself; the gradient is that of one application, and no implicit one. Its formulas were known
    in part.

    tolerance, most: above. qk_norm, rope_theta, epsilon: as attention has them.
    """

    compiles = False
    tells = True

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        tolerance: NonNegative = 0.01,
        most: Annotated[int, Interval(ge=1, le=1000)] = 4,
        qk_norm: bool = True,
        rope_theta: Annotated[float, Interval(gt=0, le=1e12)] = 10000.0,
        epsilon: Epsilon = 1e-6,
    ) -> None:
        super().__init__(
            width, heads, key_value_heads, head_width, qk_norm=qk_norm, rope_theta=rope_theta, epsilon=epsilon
        )
        self.tolerance, self.most = tolerance, most

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: LayerStates | None = None
    ) -> tuple[Tensor, Notes]:
        """(y [B, T, width], notes) of x. cos, sin: from `Rotary`. documents: [B, T]. cache: of `new_cache`."""
        raw, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split(self.split, dim=2)
        cos, sin = cos.to(raw.dtype), sin.to(raw.dtype)
        k, v = rotate(self.key_norm(k), cos, sin).transpose(1, 2), v.transpose(1, 2)
        mask = None
        if cache is not None:
            k, v, mask = cache.each[0].append(k, v)
        elif documents is not None:
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = ((documents[:, :, None] == documents[:, None, :]) & before)[:, None]

        def answered(raw: Tensor) -> Tensor:
            q = rotate(self.query_norm(raw), cos, sin).transpose(1, 2)
            causal = mask is None and q.shape[2] > 1
            found = grouped_attention(q, k, v, mask=mask, is_causal=causal)
            return found.transpose(1, 2).flatten(2)

        to_queries = self.qkv.weight[: self.split[0] * self.head_width]

        def again(z: Tensor) -> Tensor:
            return raw + F.linear(self.output(z), to_queries).unflatten(-1, (-1, self.head_width))

        with torch.no_grad():
            z = answered(raw)
            going = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            count = torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
            for _ in range(self.most - 1):
                if not self.training and not going.any():
                    break
                new = answered(again(z))
                count += going
                moved = (new - z).norm(dim=-1) > self.tolerance * z.norm(dim=-1)
                z = torch.where(going[..., None], new, z)
                going = going & moved
        return self.output(answered(again(z))), {"iterations": count.mean()}

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> HeldOnce:
        """The state of `rows` rows that have read nothing."""
        shape = KeyValueShape(self.split[1], self.head_width)
        return HeldOnce([contiguous_layer(shape, rows, room, dtype, device)])

    def token_bytes(self, dtype: torch.dtype) -> int:
        return 2 * self.split[1] * self.head_width * dtype.itemsize

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        projected, back = self.projections(shape, inputs)
        keys, whole = shape.past + shape.new, shape.backward
        once = cost.attention(shape.rows, self.heads, shape.new, keys, self.head_width)
        last = cost.attention(shape.rows, self.heads, shape.new, keys, self.head_width, back)
        queries = 2 * shape.tokens * self.output.in_features * self.output.out_features
        trained, asks = self.output.weight.requires_grad, self.qkv.weight.requires_grad
        refined = queries * (1 + (whole and trained) + 1 + (whole and asks) + (whole and trained))
        return projected + self.most * once + last + (self.most - 1) * 2 * queries + refined
