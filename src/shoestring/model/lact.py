"""LaCT: a small network of each head is trained on the text as it is read, once a large chunk."""

import logging
from typing import Annotated, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import Epsilon, Positive, method
from shoestring.model.norm import RMSNorm
from shoestring.model.recurrent import Kept, RecurrentMixer
from shoestring.model.recurrent_cache import RecurrentState

log = logging.getLogger(__name__)


class Fast(NamedTuple):
    """The weights of the networks: gate and up [B, H, hidden, d], down [B, H, d, hidden]."""

    gate: Tensor
    up: Tensor
    down: Tensor


class FastWeightRead(NamedTuple):
    """What is read of tokens: queries, keys, values [B, T, H, d]; rates [B, T, H, 3], of each matrix."""

    q: Tensor
    k: Tensor
    v: Tensor
    rates: Tensor


@method(
    "model",
    kind="token mixer",
    name="lact",
    paper="Test-Time Training Done Right, arXiv:2505.23884",
    claim="large chunks raise the use of a GPU from below 5 % to up to 70 %, and states to 40 % of the weights; on language, "
    "images and novel view synthesis",
    cost="linear in the length: 4 width² a token, 6 d hidden FLOPs a head to read and 12 d hidden to learn; a state of 3 d hidden",
)
class LargeChunkTestTimeTraining(RecurrentMixer):
    """Each head reads tokens with a gated network, whose weights take a gradient step after every chunk of tokens.

    Tianyuan Zhang et al., 2025, arXiv:2505.23884.

    q, k, v = silu(W x), q and k of length 1; f(u) = W_down (silu(W_gate u) * W_up u), d -> hidden -> d.
    o_t = f(q_t), with the weights after the chunks before that of t. After a chunk: W <- |W_0| N(W + sum_t eta_t
    grad(f(k_t)^T v_t)), rows kept at the length that they had at the start; eta = rate softplus(W_eta x + 1) of each head and
    matrix.
    y = W_out (RMSNorm(o) per head). x: [B, T, width] -> [B, T, width]. d = head_width.

    Cost: linear in T. State: 3 d hidden numbers a head, and the keys, values and rates of a chunk that is not full.
    Different from the paper: a plain gradient step, not Muon's; no window attention within the layer, as a pattern puts attention
    layers beside it; packed documents, and rows whose chunks end at different places, are read one after the other.

    chunk: tokens between two steps. expansion: hidden width over d. rate: factor on the rates. epsilon: of the norm.
    """

    compiles = False

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        chunk: Annotated[int, Interval(ge=1, le=1 << 20)] = 256,
        expansion: Annotated[float, Interval(gt=0, le=64)] = 1.0,
        rate: Positive = 0.01,
        epsilon: Epsilon = 1e-5,
    ) -> None:
        super().__init__()
        if key_value_heads != heads:
            raise ValueError(f"lact has keys of each head: key_value_heads = {key_value_heads} must be heads = {heads}")
        self.heads, self.head_width, self.chunk, self.rate = heads, head_width, chunk, rate
        self._said = False
        self.hidden = max(1, round(expansion * head_width))
        self.input = nn.Linear(width, 3 * heads * head_width + 3 * heads, bias=False)
        self.gate, self.up = (nn.Parameter(torch.empty(heads, self.hidden, head_width)) for _ in range(2))
        self.down = nn.Parameter(torch.empty(heads, head_width, self.hidden))
        self.norm = RMSNorm(head_width, epsilon=epsilon)
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """The networks' first weights: normal, of standard deviation 1 / sqrt(fan-in)."""
        for weight in (self.gate, self.up, self.down):
            weight.normal_(std=weight.shape[-1] ** -0.5)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        inner = self.heads * self.head_width
        mixed, rates = self.input(x).split((3 * inner, 3 * self.heads), -1)
        q, k, v = F.silu(mixed).unflatten(-1, (3, self.heads, self.head_width)).unbind(2)
        rates = self.rate * F.softplus(rates + 1).unflatten(-1, (self.heads, 3))
        read = FastWeightRead(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, rates)
        if cache is not None:
            found = self._decode(read, cache)
        elif documents is None:
            found = self._read(read, self._begin(len(x)), None)[0]
        else:
            found = torch.cat([self._document_by_document(read, row, documents[row]) for row in range(len(x))])
        return self.output(self.norm(found).flatten(2))

    def _document_by_document(self, read: FastWeightRead, row: int, documents: Tensor) -> Tensor:
        """[1, T, H, d] of one row."""
        if not self._said:
            log.warning("lact reads packed documents one after the other, which is slower than whole rows")
            self._said = True
        lengths = torch.unique_consecutive(documents, return_counts=True)[1].tolist()
        found, first = [], 0
        for length in lengths:
            own = FastWeightRead(*(each[row : row + 1, first : first + length] for each in read))
            found.append(self._read(own, self._begin(1), None)[0])
            first += length
        return torch.cat(found, 1)

    def _begin(self, rows: int) -> Fast:
        return Fast(*(weight.expand(rows, *weight.shape) for weight in (self.gate, self.up, self.down)))

    def _read(
        self, read: FastWeightRead, fast: Fast, pending: FastWeightRead | None
    ) -> tuple[Tensor, Fast, FastWeightRead | None]:
        """(o [B, T, H, d], the weights after it, what was read of the chunk that is not full).

        pending: of the chunk, the tokens before; None: the first of a text that needs no state after it.
        """
        kept, length, place, found = pending, read.q.shape[1], 0, []
        while place < length:
            held = 0 if kept is None else kept.q.shape[1]
            more = min(self.chunk - held, length - place)
            own = FastWeightRead(*(each[:, place : place + more] for each in read))
            found.append(_network(fast, own.q))
            place += more
            if pending is None and place == length:
                break  # nobody reads what the last chunk would teach
            kept = (
                own if kept is None else FastWeightRead(*(torch.cat(both, 1) for both in zip(kept, own, strict=True)))
            )
            if kept.q.shape[1] == self.chunk:
                fast = self._learnt(fast, kept)
                kept = FastWeightRead(*(each[:, :0] for each in kept))
        return torch.cat(found, 1), fast, kept

    def _learnt(self, fast: Fast, read: FastWeightRead) -> Fast:
        """The weights after a step on a chunk."""
        k, v = read.k.transpose(1, 2), read.v.transpose(1, 2)  # [B, H, C, d]
        rates = read.rates.transpose(1, 2)  # [B, H, C, 3]
        gate, up = k @ fast.gate.transpose(-1, -2), k @ fast.up.transpose(-1, -2)
        share = gate.sigmoid()
        hidden = gate * share * up
        back = v @ fast.down
        to_gate = back * up * share * (1 + gate * (1 - share))
        steps = (
            (rates[..., 0:1] * to_gate).transpose(-1, -2) @ k,
            (rates[..., 1:2] * back * gate * share).transpose(-1, -2) @ k,
            (rates[..., 2:3] * v).transpose(-1, -2) @ hidden,
        )
        begun = (self.gate, self.up, self.down)
        return Fast(
            *(
                F.normalize(weight + step, dim=-1) * first.to(step.dtype).norm(dim=-1, keepdim=True)
                for weight, step, first in zip(fast, steps, begun, strict=True)
            )
        )

    def _decode(self, read: FastWeightRead, cache: RecurrentState) -> Tensor:
        """As `_read`, going on from a state: all rows at once where their chunks end alike, else one after the other."""
        rows, length = read.q.shape[:2]
        held: list[int] = cache.tensors["held"].tolist()
        new = [length] * rows if cache.real is None else cache.real.sum(1).tolist()
        if len(set(held)) == 1 and min(new) == length:
            return self._go_on(read, cache, slice(0, rows), held[0])
        found = torch.zeros_like(read.q)
        for row, count in enumerate(new):
            if count:
                own = FastWeightRead(*(each[row : row + 1, :count] for each in read))
                found[row, :count] = self._go_on(own, cache, slice(row, row + 1), held[row])[0]
        return found

    def _go_on(self, read: FastWeightRead, cache: RecurrentState, rows: slice, held: int) -> Tensor:
        kept = cache.tensors
        fast = Fast(*(kept[name][rows].to(read.q.dtype) for name in Fast._fields))
        pending = FastWeightRead(
            *(kept[f"pending_{name}"][rows, :held].to(read.q.dtype) for name in FastWeightRead._fields)
        )
        found, fast, left = self._read(read, fast, pending)
        assert left is not None
        for name, weight in zip(Fast._fields, fast, strict=True):
            kept[name][rows] = weight.to(kept[name].dtype)
        more = left.q.shape[1]
        for name, value in zip(FastWeightRead._fields, left, strict=True):
            kept[f"pending_{name}"][rows, :more] = value.to(kept[f"pending_{name}"].dtype)
        kept["held"][rows] = more
        return found

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row: the networks, and what was read of a chunk that is not full."""
        made = {
            name: Kept(tuple(weight.shape), "wide")
            for name, weight in zip(Fast._fields, (self.gate, self.up, self.down), strict=True)
        }
        for name in FastWeightRead._fields:
            made[f"pending_{name}"] = Kept((self.chunk - 1, self.heads, 3 if name == "rates" else self.head_width))
        return made | {"held": Kept((), "count")}

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> RecurrentState:
        made: RecurrentState = super().new_cache(rows, room, dtype, device)
        for name, weight in zip(Fast._fields, (self.gate, self.up, self.down), strict=True):
            made.tensors[name].copy_(weight.detach())
        return made

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: heads, and the width that it reads and writes."""
        inner, each = self.heads * self.head_width, self.head_width
        own = [Slice("input.weight", 0, part * inner, each) for part in range(3)]
        own += [Slice("input.weight", 0, 3 * inner, 3), Slice("output.weight", 1, 0, each)]
        own += [Slice(name, 0) for name in Fast._fields]
        return (self.width_axis(), Axis("head", None, self.heads, tuple(own)))

    def resized(self) -> None:
        """Take the number of heads from the weights, which were cut."""
        self.heads = len(self.gate)

    def inside_trains(self) -> bool:
        return cost.trains(self)

    def own_flops(self, shape: Shape, backward: bool) -> int:
        learnt = (shape.new - 1) // self.chunk if backward else (shape.past + shape.new) // self.chunk
        learnt -= 0 if backward else shape.past // self.chunk
        places = shape.new + 2 * max(0, learnt) * self.chunk
        each = 6 * shape.rows * self.heads * self.head_width * self.hidden
        return (3 if backward else 1) * each * places


def _network(fast: Fast, u: Tensor) -> Tensor:
    """f(u) [B, T, H, d], of u [B, T, H, d]."""
    u = u.transpose(1, 2)
    hidden = F.silu(u @ fast.gate.transpose(-1, -2)) * (u @ fast.up.transpose(-1, -2))
    return (hidden @ fast.down.transpose(-1, -2)).transpose(1, 2)
