"""LAVO: the text before a window as its mean along orthogonal directions, and the window itself token by token."""

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import method
from shoestring.model.attention_heads import AttentionHeads
from shoestring.model.documents import by_document
from shoestring.model.recurrent import Kept, OwnState
from shoestring.model.recurrent_cache import RecurrentState, together
from shoestring.model.rotary import rotate
from shoestring.model.tiles import tile_count, tiled


@method(
    "model",
    kind="token mixer",
    name="lavo",
    paper="Linear Attention via Orthogonal Memory, arXiv:2312.11135",
    claim="the best extrapolation among efficient attentions on language modelling, and contexts scaled to 128 thousand tokens",
    cost="linear in the length: two projections, and 4 head_width FLOPs a head for each token of a window and each direction",
)
class OrthogonalMemory(OwnState, AttentionHeads):
    """Attention to the tokens of the same window, and to a fixed number of slots that stand for all windows before.

    Jun Zhang et al., 2023, arXiv:2312.11135.

    B [r, width]: orthonormal rows b_j, drawn once. m = the mean of x over all windows that have ended; h = B m [r]; slot j is
    h_j b_j, with the key W_k h_j b_j and the value W_v h_j b_j. A query attends by one softmax to the r slots and to the tokens of
    its own window up to itself. x: [B, T, width] -> [B, T, width].

    Cost: linear in T. State: two vectors of width, and the keys and values of a window, whatever the length.
    Different from the paper, whose formulas were known in part: positions are rotary within a window, and slots have none; the mean
    gives each token the same weight. Packed documents are read apart.

    window: tokens of one. directions: r, at most the width; 0: a quarter of it. rope_theta: base of the rotary frequencies.
    """

    compiles = False
    basis: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        window: Annotated[int, Interval(ge=1, le=65536)] = 128,
        directions: Annotated[int, Interval(ge=0, le=65536)] = 0,
        rope_theta: Annotated[float, Interval(gt=0, le=1e12)] = 10000.0,
    ) -> None:
        super().__init__(width, heads, key_value_heads, head_width, qk_norm=False, rope_theta=rope_theta)
        if directions > width:
            raise ValueError(f"directions = {directions} cannot be orthogonal in a width of {width}: give at most that")
        self.window = window
        self.register_buffer("basis", torch.empty(directions or -(-width // 4), width))
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Orthonormal directions, uniformly."""
        if self.basis.device.type != "meta":
            drawn = torch.randn(self.basis.shape[1], self.basis.shape[0], device=self.basis.device)
            self.basis.copy_(torch.linalg.qr(drawn).Q.T)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: from `Rotary`. documents: [B, T]. cache: of `new_cache`."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_width)).split(self.split, dim=2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        parts = rotate(q, cos, sin), q, rotate(k, cos, sin), v, x
        if cache is None:
            alone = self._alone
            return self.output(
                (alone(*parts) if documents is None else by_document(alone, documents, parts)).flatten(2)
            )
        mixed, size = torch.zeros_like(q), self.window
        for rows, held, new in together(cache.coming):
            turned, own, k, v, read = (part[rows, :new] for part in parts)
            before, end, kept = held % size, held + new, cache.tensors
            k, v = (
                torch.cat((kept[name][rows, :before].to(new.dtype), new), 1)
                for name, new in (("keys", k), ("values", v))
            )
            sums = self._sums(read, before, kept["pending"][rows])
            mixed[rows, :new] = self._attend(turned, own, k, v, sums, kept["sum"][rows], held)
            if end // size > held // size:
                whole = sums[:, : end // size - held // size].sum(1)
                kept["sum"][rows] += whole.to(kept["sum"].dtype)
            left = end % size
            kept["pending"][rows] = sums[:, -1].to(kept["pending"].dtype) if left else 0.0
            for name, value in (("keys", k), ("values", v)):
                kept[name][rows, :left] = value[:, value.shape[1] - left :].to(kept[name].dtype)
        return self.output(mixed.flatten(2))

    def _alone(self, turned: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """[B, T, Hq, D], of whole texts."""
        return self._attend(turned, q, k, v, self._sums(x, 0, None), None, 0)

    def _sums(self, x: Tensor, before: int, pending: Tensor | None) -> Tensor:
        """[B, n, width]: the sum of x over each window, the first with what is pending. before: places of it that were read."""
        wide = torch.promote_types(x.dtype, torch.float32)
        filled = F.pad(x.to(wide), (0, 0, before, -(before + x.shape[1]) % self.window))
        sums = filled.unflatten(1, (-1, self.window)).sum(2)
        return sums if pending is None else torch.cat((sums[:, :1] + pending[:, None], sums[:, 1:]), 1)

    def _attend(
        self, turned: Tensor, q: Tensor, k: Tensor, v: Tensor, sums: Tensor, total: Tensor | None, past: int
    ) -> Tensor:
        """[B, T, Hq, D].

        turned, q: [B, T, Hq, D], at places past, past + 1 ...; turned by their positions, and not. k, v: [B, S, Hk, D], since the
        start of the first query's window. sums: [B, n, width], of the windows. total: [B, width], of all before; None: of none.
        """
        size, heads, first = self.window, self.split[1], past // self.window
        padding = -k.shape[1] % size
        k, v = (
            F.pad(part, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4) for part in (k, v)
        )
        near = tiled(turned.transpose(1, 2) / math.sqrt(q.shape[-1]), past, size, heads)
        far = tiled(q.transpose(1, 2) / math.sqrt(q.shape[-1]), past, size, heads).queries
        shape, wide = far.shape[3:5], torch.promote_types(q.dtype, torch.float32)
        ended = first + torch.arange(sums.shape[1], device=q.device)  # windows before each
        means = (
            F.pad(sums, (0, 0, 1, 0))[:, :-1].cumsum(1)
            if total is None
            else torch.cat((total[:, None], sums[:, :-1]), 1).cumsum(1)
        )
        means = (means / (ended.clamp_min(1) * size)[:, None]).to(q.dtype)
        shares = (means @ self.basis.to(q.dtype).T)[:, None, :, None, None]  # [B, 1, n, 1, 1, r]
        _, keys, values = self.qkv.weight.split([count * self.head_width for count in self.split])
        slots_k, slots_v = (
            (weight.to(q.dtype) @ self.basis.to(q.dtype).T).unflatten(0, (heads, -1)) for weight in (keys, values)
        )  # [Hk, D, r]
        close = (near.queries.flatten(3, 4) @ k.transpose(-1, -2)).to(wide).unflatten(3, shape)
        places = torch.arange(size, device=q.device)
        close = close.masked_fill((places > (near.at % size)[..., None])[:, None], -math.inf)
        distant = (far.flatten(2, 4) @ slots_k).unflatten(2, far.shape[2:5]) * shares
        distant = distant.to(wide).masked_fill((ended == 0)[:, None, None, None], -math.inf)
        weights = torch.cat((close, distant), -1).softmax(-1).to(v.dtype)
        own, others = weights.split((size, self.basis.shape[0]), -1)
        found = (own.flatten(3, 4) @ v).unflatten(3, shape)
        found = found + ((others * shares).flatten(2, 4) @ slots_v.transpose(-1, -2)).unflatten(2, far.shape[2:5])
        return near.untiled(found, past).transpose(1, 2)

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row: sums of x, and a window."""
        window, width = Kept((self.window, self.split[1], self.head_width)), Kept((self.qkv.in_features,), "wide")
        return {"sum": width, "pending": width, "keys": window, "values": window}

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights. Directions that are cut are orthogonal no longer."""
        width, *others = super().axes()
        return (Axis("width", None, width.size, (*width.slices, Slice("basis", 1))), *others)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        projected, back = self.projections(shape, inputs)
        if not shape.new:
            return projected
        count, each = tile_count(shape.past, shape.new, self.window)
        directions, width = self.basis.shape
        seen = self.window + directions
        read = (3 if back else 1) * 4 * shape.rows * self.heads * count * each * seen * self.head_width
        means = (2 if back and inputs else 1) * 2 * shape.rows * count * width * directions
        slots = 2 * 2 * self.split[1] * self.head_width * width * directions
        return projected + read + means + (2 if shape.backward and cost.trains(self.qkv) else 1) * slots
