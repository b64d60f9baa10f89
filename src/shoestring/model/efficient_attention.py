"""Efficient attention of EmbBERT: the tokens are their own keys and values, beside a convolution of each feature."""

from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.contract.role import VECTOR
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.recurrent import OwnState
from shoestring.model.recurrent_cache import TokenMemory
from shoestring.model.short_convolution import short_convolution


@method(
    "model",
    kind="token mixer",
    name="efficient_attention",
    paper="EmbBERT-Q: Breaking Memory Barriers in Embedded NLP, arXiv:2502.10001",
    claim="a model of 781 kB, weights and activations in 8 bits, outperforms baselines that are scaled down to 2 MB, BERT and "
    "MAMBA among them",
    cost="3 width² weights in place of 4; quadratic in the length; width numbers of state a token, half of what attention keeps",
)
class EfficientAttention(OwnState):
    """Attention with queries alone, less a convolution of the same tokens, each with a weight.

    Riccardo Bravin et al., 2025, arXiv:2502.10001.

        u = softmax(q x^T / sqrt(head_width)) x,   q = W_q x, head by head, each token seeing itself and those before it
        c_t = silu(sum_j taps[:, j] x_{t-j}),   j = 0 .. kernel - 1
        y = W_out [l_1 u; -l_2 c],   l_i = exp(a_i . b_i)

    a_i, b_i: [width], normal at first, of standard deviation 0.1. x: [B, T, width] -> [B, T, width]. The heads together are as wide
    as the model. Nothing is rotated by position: the convolution says what is near. State: the tokens x themselves.

    Different from the paper: causal, heads in place of one, no learnt table of positions and no biases. The abstract has no
    formula: these are from the authors' code.

    kernel: taps of the convolution.
    """

    roles: ClassVar[dict[str, str]] = {"taps": VECTOR, "gains": VECTOR}
    compiles = False

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        kernel: Annotated[int, Interval(ge=1, le=1024)] = 32,
    ) -> None:
        super().__init__()
        if heads * head_width != width:
            raise ValueError(
                f"tokens are keys themselves: {heads} heads of {head_width} must be as wide as the model, {width}"
            )
        if key_value_heads != heads:
            raise ValueError("efficient_attention has keys of each head: leave key_value_heads out")
        self.width, self.heads, self.kernel = width, heads, kernel
        self.query = nn.Linear(width, width, bias=False)
        self.taps = nn.Parameter(torch.empty(width, kernel))
        self.gains = nn.Parameter(torch.empty(4, width))
        self.output = nn.Linear(2 * width, width, bias=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Taps uniform, as of a convolution of torch; gains as the class says."""
        bound = self.kernel**-0.5
        self.taps.uniform_(-bound, bound)
        self.gains.normal_(std=0.1)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: TokenMemory | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        seen, mask, past = x, None, None
        if cache is not None:
            past = cache.before(self.kernel - 1).to(x.dtype)
            seen, mask = cache.append(x)
        elif documents is not None:
            before = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = ((documents[:, :, None] == documents[:, None, :]) & before)[:, None]
        q, keys = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), seen))
        causal = mask is None and x.shape[1] > 1
        attended = F.scaled_dot_product_attention(q, keys, keys, attn_mask=mask, is_causal=causal)
        near = F.silu(short_convolution(x, self.taps, past, documents)[0])
        first, second = ((a * b).sum().exp().to(x.dtype) for a, b in (self.gains[:2], self.gains[2:]))
        return self.output(torch.cat((first * attended.transpose(1, 2).flatten(2), -second * near), -1))

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> TokenMemory:
        """The state of `rows` rows that have read nothing."""
        return TokenMemory(torch.zeros(rows, room, self.width, dtype=dtype, device=device))

    def token_bytes(self, dtype: torch.dtype) -> int:
        return self.width * dtype.itemsize

    def resized(self) -> None:
        """Raises: UsageError where the width was cut: the heads would not be as wide."""
        if self.query.in_features != self.width:
            raise UsageError(
                f"the heads of efficient_attention are as wide as the model, {self.width}: cut other layers' parts"
            )

    def axes(self) -> tuple[Axis, ...]:
        """The axis of the width, along which all its weights lie."""
        names = (("query.weight", 0), ("query.weight", 1), ("taps", 0), ("gains", 1), ("output.weight", 0))
        slices = tuple(Slice(name, dim) for name, dim in names)
        both = Slice("output.weight", 1), Slice("output.weight", 1, self.width)
        return (Axis("width", None, self.width, (*slices, *both)),)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        back = shape.backward
        inside = back and (inputs or cost.trains(self.query))
        total = cost.linear(self.query, shape.tokens, back, inputs)
        keys = shape.past + shape.new
        total += cost.attention(shape.rows, self.heads, shape.new, keys, self.width // self.heads, inside)
        return total + cost.linear(self.output, shape.tokens, back, True)
