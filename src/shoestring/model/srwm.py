"""SRWM: a weight matrix that says, with each token, how it wants to change itself."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

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
    backward pass: 4 forward passes in all where a text has more than one chunk, else 3. State: d (3 d + 4) numbers a head.
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
        real = None if cache is None else cache.real
        length, found = x.shape[1], []
        again = torch.is_grad_enabled() and length > self.chunk
        for first in range(0, length, self.chunk):
            own = slice(first, first + self.chunk)
            parts = (
                given[:, :, own],
                state,
                begun,
                None if ends is None else ends[:, own],
                None if real is None else real[:, own],
            )
            last = cache is None and first + self.chunk >= length
            if again:
                with set_checkpoint_early_stop(False):
                    said, state = checkpoint(self._chunk, *parts, last, use_reentrant=False)
            else:
                said, state = self._chunk(*parts, last)
            found.append(said)
        if cache is not None:
            cache.tensors["state"] = state.to(cache.tensors["state"].dtype)
        return self.output(torch.cat(found, 2).transpose(1, 2).flatten(2))

    def _chunk(
        self, given: Tensor, state: Tensor, begun: Tensor, ends: Tensor | None, real: Tensor | None, last: bool
    ) -> tuple[Tensor, Tensor]:
        """(y [B, H, C, d], the state after it). last: whether nobody reads the state after the last token."""
        d, found = self.head_width, []
        for place, token in enumerate(given.unbind(2)):
            y, k, q, rates = (state @ token[..., None])[..., 0].split((d, d, d, 4), -1)
            found.append(y)
            if last and place + 1 == given.shape[2]:
                break
            key = k.softmax(-1)
            change = state @ (q.softmax(-1) - key)[..., None]
            each = rates.sigmoid().repeat_interleave(torch.tensor([d, d, d, 4], device=rates.device), -1)
            if real is not None:
                each = each * real[:, place, None, None]
            state = state + each[..., None] * change * key[..., None, :]
            if ends is not None:
                state = torch.where(ends[:, place, None, None, None], begun, state)
        return torch.stack(found, 2), state

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
        products = max(0, 2 * shape.new - (1 if shape.backward else 0))
        passes = 1 if not backward else 4 if shape.new > self.chunk else 3
        return passes * 2 * shape.rows * self.heads * products * self.head_width * (3 * self.head_width + 4)
