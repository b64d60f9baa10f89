"""Queries, keys and values by heads: what softmax attention of every pattern shares."""

from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import Epsilon
from shoestring.model.norm import RMSNorm
from shoestring.model.rotary import rotate


class AttentionHeads(nn.Module):
    """`qkv`, norms of queries and keys, rotary positions, and `output`. Which key a query sees is the subclass's.

    heads, key_value_heads: of queries; of keys and values. qk_norm, rope_theta, epsilon, bias: as `Attention` has them.
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
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.rope_theta = heads, head_width, rope_theta
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

    def by_heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, Hq, T, D], k and v [B, Hk, T, D] of x [B, T, width]; queries and keys normed and turned."""
        # one `split`, not slices: its backward pass is one concatenation
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split(self.split, dim=2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        # transposed views: the kernel reads them with their strides, and nothing is copied
        q = rotate(self.query_norm(q), cos, sin).transpose(1, 2)
        k = rotate(self.key_norm(k), cos, sin).transpose(1, 2)
        return q, k, v.transpose(1, 2)

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

    def projections(self, shape: Shape, inputs: bool) -> tuple[int, bool]:
        """(operations of the two matrices, whether gradients go back through what is between). inputs: whether x takes one."""
        back = shape.backward
        inside = inputs or (
            back and (cost.trains(self.qkv) or cost.trains(self.query_norm) or cost.trains(self.key_norm))
        )
        projected = cost.linear(self.qkv, shape.tokens, back, inputs)
        return projected + cost.linear(self.output, shape.tokens, back, inside), back and inside
