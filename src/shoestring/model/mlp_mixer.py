"""The token mixer of MLP-Mixer, causal: two triangular matrices over the places of a text, shared by all features."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.anatomy import Axis
from shoestring.contract.cost import Shape
from shoestring.contract.role import VECTOR
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.model.block import Place
from shoestring.model.documents import by_document
from shoestring.model.recurrent import OwnState
from shoestring.model.recurrent_cache import LayerStates, TokenMemory


class TriangularMatrix(nn.Module):
    """`weight` [context, context], of which what lies above the diagonal is not read: place t reads places 0 .. t."""

    roles: ClassVar[dict[str, str]] = {"weight": VECTOR}

    def __init__(self, context: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(context, context))

    @torch.no_grad()
    def draw(self) -> None:
        """Row t normal, of standard deviation 1 / sqrt(t + 1): what comes out is as large as what goes in."""
        size = torch.arange(1, len(self.weight) + 1, device=self.weight.device)
        if self.weight.device.type != "meta":
            self.weight.normal_().mul_(size[:, None] ** -0.5).tril_()

    def rows(self, first: int, count: int) -> Tensor:
        """[count, first + count]: what places first .. first + count - 1 read of all up to them."""
        end = first + count
        return self.weight[first:end, :end].tril(first)


@method(
    "model",
    kind="token mixer",
    name="mlp_mixer",
    paper="pNLP-Mixer: an Efficient all-MLP Architecture for Language, arXiv:2202.04350",
    claim="an all-MLP mixer behind a hash projection consistently beats the state of the art of tiny models (pQRNN), which is "
    "twice as large",
    cost="2 context² weights a layer, however wide it is; 4 T² width operations, and 2 width numbers of state a token",
)
class MLPMixer(OwnState):
    """A network of two layers over the places of a text, the same for every feature.

    Francesco Fusco et al., 2022, arXiv:2202.04350; MLP-Mixer: Ilya Tolstikhin et al., 2021, arXiv:2105.01601.

        h_s = gelu(sum_{r <= s} A[s, r] x_r + a_s),   y_t = sum_{s <= t} B[t, s] h_s

    A, B: [context, context], a: [context]. x: [B, T, width] -> [B, T, width]. Each place has weights of its own, so the model reads
    no text that is longer than its context, and needs no other word of where tokens stand. Heads are not read.

    State: x and h of every token. Packed documents are read apart, each from place 0.

    Different from the paper: A and B are lower triangular, so that no token sees a later one, and as many features lie between them
    as there are places; there is no matrix over the width here, which is the channel mixer's.
    """

    compiles = False

    def __init__(self, width: int, heads: int, key_value_heads: int, head_width: int) -> None:
        super().__init__()
        self.width = width
        self._made(1)

    def placed(self, place: Place) -> None:
        """The matrices are made, as large as the context."""
        like = self.first.weight
        self._made(place.context)
        self.to(like.device, like.dtype)

    def _made(self, context: int) -> None:
        self.first = TriangularMatrix(context)
        self.bias = nn.Parameter(torch.zeros(context))
        self.output = TriangularMatrix(context)
        self.first.draw()
        self.output.draw()

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: LayerStates | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        if cache is not None:
            return self._decoded(x, cache)
        if documents is not None:
            return by_document(self._whole, documents, [x])
        return self._whole(x)

    def _whole(self, x: Tensor) -> Tensor:
        count = x.shape[1]
        if count > len(self.bias):
            raise UsageError(f"{count} tokens do not fit an mlp_mixer of a context of {len(self.bias)}")
        h = F.gelu(self.first.rows(0, count) @ x + self.bias[:count, None])
        return self.output.rows(0, count) @ h

    def _decoded(self, x: Tensor, cache: LayerStates) -> Tensor:
        seen, hidden = cache.each
        coming = seen.coming
        end = min(coming.end, len(self.bias))
        if coming.uniform:
            a, b = (matrix.rows(coming.longest, x.shape[1]) for matrix in (self.first, self.output))
            bias = self.bias[coming.longest : end]
        else:
            at = coming.positions.clamp_max(end - 1)  # of padding
            a, b = (matrix.rows(0, end)[at] for matrix in (self.first, self.output))
            bias = self.bias[at]
        h = F.gelu(a @ seen.append(x)[0][:, :end] + bias[..., None])
        return b @ hidden.append(h)[0][:, :end]

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> LayerStates:
        """The state of `rows` rows that have read nothing."""
        return LayerStates(
            [TokenMemory(torch.zeros(rows, room, self.width, dtype=dtype, device=device)) for _ in range(2)]
        )

    def token_bytes(self, dtype: torch.dtype) -> int:
        return 2 * self.width * dtype.itemsize

    def axes(self) -> tuple[Axis, ...]:
        """None: no weight of it lies along the width."""
        return ()

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        once = 2 * shape.tokens * (shape.past + shape.new) * self.width
        if not shape.backward:
            return 2 * once
        first, last = self.first.weight.requires_grad, self.output.weight.requires_grad
        inside = inputs or first or self.bias.requires_grad
        return once * (2 + first + inputs + last + inside)
