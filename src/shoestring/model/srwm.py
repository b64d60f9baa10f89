"""SRWM: a weight matrix that says, with each token, how it wants to change itself."""

from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Interval
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.method import method
from shoestring.model.recurrent import Kept, RecurrentMixer
from shoestring.model.recurrent_cache import RecurrentState


@method(
    "model",
    kind="token mixer",
    name="srwm",
    paper="A Modern Self-Referential Weight Matrix That Learns to Modify Itself, arXiv:2202.05780",
    claim="competitive in supervised few-shot learning and in multi-task reinforcement learning in procedurally generated games",
    cost="one token after the other: 2 width inner to project, and 4 d (3 d + 4) FLOPs a head; a state of d (3 d + 4) a head",
)
class SelfReferential(RecurrentMixer):
    """Each head is a matrix that maps a token to an answer, and to a key, a query and rates by which it changes itself.

    Kazuki Irie, Imanol Schlag, Robert Csordas and Juergen Schmidhuber, 2022, arXiv:2202.05780.

    Per head, with W [3 d + 4, d], d = head_width, and phi = softmax: (y, k, q, beta) = W_{t-1} phi(x_t), of sizes d, d, d, 4;
    W_t = W_{t-1} + sigmoid(beta) * W_{t-1} (phi(q) - phi(k)) phi(k)^T, where the four rates are those of the rows that make y, k, q
    and beta. x_t are the features of a head of W_in x; the answer is W_out y. x: [B, T, width] -> [B, T, width]. W_0 is learnt.

    Cost: T steps, one after the other. While training, states are kept at the start of every `chunk` tokens, and made again in the
    backward pass: 4 forward passes in all. State: d (3 d + 4) numbers a head.
    Different from the paper: W_in is a matrix before the heads, where the paper's layers split the stream; no norm and no
    feed-forward layer inside, which are the block's.

    chunk: tokens whose states are held at once, which changes memory alone.
    """

    compiles = False

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        chunk: Annotated[int, Interval(ge=1, le=65536)] = 32,
    ) -> None:
        super().__init__()
        if key_value_heads != heads:
            raise ValueError(f"srwm has keys of each head: key_value_heads = {key_value_heads} must be heads = {heads}")
        self.heads, self.head_width, self.chunk = heads, head_width, chunk
        self.input = nn.Linear(width, heads * head_width, bias=False)
        self.start = nn.Parameter(torch.empty(heads, 3 * head_width + 4, head_width))
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Normal, of standard deviation 1 / sqrt(d); the rows of the rates 0, so that each is 1/2."""
        self.start.normal_(std=self.head_width**-0.5)
        self.start[:, 3 * self.head_width :] = 0

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        given = self.input(x).unflatten(-1, (self.heads, self.head_width)).softmax(-1).transpose(1, 2)  # [B, H, T, d]
        begun = self.start.to(given.dtype).expand(len(x), -1, -1, -1)
        state = begun if cache is None else cache.tensors["state"].to(given.dtype)
        ends = None  # [B, T], whether the state is forgotten after a token
        if documents is not None:
            ends = torch.zeros_like(documents, dtype=torch.bool)
            ends[:, :-1] = documents[:, :-1] != documents[:, 1:]
        real, found = None if cache is None else cache.real, []
        with torch.autocast(x.device.type, enabled=False):  # a state is a sum of many terms
            for first in range(0, x.shape[1], self.chunk):
                own = slice(first, first + self.chunk)
                rows = (None if each is None else each[:, own] for each in (ends, real))
                said, state = _Tokens.apply(given[:, :, own], state, begun, *rows)
                found.append(said)
        if cache is not None:
            cache.tensors["state"] = state.to(cache.tensors["state"].dtype)
        return self.output(torch.cat(found, 2).transpose(1, 2).flatten(2))

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row."""
        return {"state": Kept(tuple(self.start.shape), "wide")}

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> RecurrentState:
        """The state of `rows` rows that have read nothing."""
        made: RecurrentState = super().new_cache(rows, room, dtype, device)
        made.tensors["state"].copy_(self.start.detach())
        return made

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: heads, and the width that it reads and writes."""
        each = self.head_width
        own = (Slice("input.weight", 0, 0, each), Slice("start", 0), Slice("output.weight", 1, 0, each))
        return (self.width_axis(), Axis("head", None, self.heads, own))

    def resized(self) -> None:
        """Take the number of heads from the weights, which were cut."""
        self.heads = len(self.start)

    def inside_trains(self) -> bool:
        return cost.trains(self.input) or self.start.requires_grad

    def own_flops(self, shape: Shape, backward: bool) -> int:
        passes = 4 if backward else 1
        return passes * 2 * shape.rows * self.heads * 2 * shape.new * self.head_width * (3 * self.head_width + 4)


class _Step(NamedTuple):
    """What a token made of the state before it: columns of N = B heads, so [N, rows, 1].

    chosen: softmax of k and of q. difference: phi(q) - phi(k). moved: what the matrix says to that. rates: sigmoid(beta), of four.
    change: what is added to the rows, times phi(k)'.
    """

    state: Tensor
    token: Tensor
    answer: Tensor
    chosen: Tensor
    difference: Tensor
    moved: Tensor
    rates: Tensor
    each: Tensor
    change: Tensor


def _step(state: Tensor, token: Tensor, real: Tensor | None, of_row: Tensor) -> _Step:
    d = token.shape[1]
    said = torch.bmm(state, token)
    answer, asked, rates = said.split((d, 2 * d, 4), 1)
    chosen = asked.unflatten(1, (2, d)).softmax(2)
    difference = chosen[:, 1] - chosen[:, 0]
    moved, rates = torch.bmm(state, difference), rates.sigmoid()
    each = (rates if real is None else rates * real).index_select(1, of_row)
    return _Step(state, token, answer, chosen, difference, moved, rates, each, each * moved)


def _after(step: _Step) -> Tensor:
    """The state after a token."""
    return torch.addcmul(step.state, step.change, step.chosen[:, 0].mT)


class _Tokens(torch.autograd.Function):
    """Some tokens, one after the other: the answers [B, H, C, d], and the state after them [B, H, R, d].

    given: phi(x), [B, H, C, d]. state, begun: [B, H, R, d]. ends, real: [B, C], whether the state is forgotten after a token, and
    whether it counts at all. What is kept for the backward pass are these: it makes the states between again. It is made of
    products that can be differentiated, and so may be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any, given: Tensor, state: Tensor, begun: Tensor, ends: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(given, state, begun, ends, real)
        walk, found = _Walk(given, begun, ends, real), []
        now = state.flatten(0, 1)
        for place in range(given.shape[2]):
            step = walk.step(now, place)
            found.append(step.answer)
            now = walk.forget(_after(step), place)
        return torch.stack(found, 1).view_as(given), now.view_as(state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given, state, begun, ends, real = ctx.saved_tensors
        walk, steps = _Walk(given, begun, ends, real), list[_Step]()
        now = state.flatten(0, 1)
        for place in range(given.shape[2]):
            steps.append(walk.step(now, place))
            now = walk.forget(_after(steps[-1]), place)
        answers, ahead = gradients[0].flatten(0, 1), gradients[1].flatten(0, 1)
        forgotten, back, d = torch.zeros_like(ahead), list[Tensor](), given.shape[3]
        for place in range(given.shape[2] - 1, -1, -1):
            one = steps.pop()
            if walk.ends is not None:
                forgotten = forgotten + torch.where(walk.ends[place], ahead, 0)
                ahead = torch.where(walk.ends[place], 0, ahead)
            of_change = torch.bmm(ahead, one.chosen[:, 0])
            of_moved, of_each = of_change * one.each, of_change * one.moved
            of_rates = torch.cat([of_each[:, : 3 * d].unflatten(1, (3, d)).sum(2), of_each[:, 3 * d :].sum(1, True)], 1)
            of_rates = of_rates * one.rates * (1 - one.rates)
            if walk.real is not None:
                of_rates = of_rates * walk.real[place]
            of_difference = torch.bmm(one.state.mT, of_moved)
            of_chosen = torch.stack([torch.bmm(ahead.mT, one.change) - of_difference, of_difference], 1)
            of_asked = one.chosen * (of_chosen - (of_chosen * one.chosen).sum(2, True))
            of_said = torch.cat([answers[:, place, :, None], of_asked.flatten(1, 2), of_rates], 1)
            back.append(torch.bmm(one.state.mT, of_said))
            ahead = torch.addcmul(torch.addcmul(ahead, of_moved, one.difference.mT), of_said, one.token.mT)
        of_given = torch.stack(back[::-1], 1).view_as(given)
        return of_given, ahead.view_as(state), forgotten.view_as(begun), None, None


class _Walk:
    """The inputs of some tokens, by place: columns of N = B heads."""

    def __init__(self, given: Tensor, begun: Tensor, ends: Tensor | None, real: Tensor | None) -> None:
        heads, d = given.shape[1], given.shape[3]
        self.tokens = given.flatten(0, 1).transpose(0, 1)[..., None].contiguous()  # [C, N, d, 1]
        self.begun = begun.flatten(0, 1)
        self.ends, self.real = (
            None if each is None else each.T.repeat_interleave(heads, 1)[..., None, None] for each in (ends, real)
        )  # [C, N, 1, 1]
        self.of_row = torch.arange(4, device=given.device).repeat_interleave(
            torch.tensor([d, d, d, 4], device=given.device)
        )

    def step(self, state: Tensor, place: int) -> _Step:
        return _step(state, self.tokens[place], None if self.real is None else self.real[place], self.of_row)

    def forget(self, state: Tensor, place: int) -> Tensor:
        return state if self.ends is None else torch.where(self.ends[place], self.begun, state)
