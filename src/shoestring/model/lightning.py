"""Lightning attention: linear attention whose memory fades at a fixed rate of each head."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.kernels.recurrent import Recurrence
from shoestring.method import Epsilon, method
from shoestring.model.block import Place
from shoestring.model.linear_recurrence import CHUNK, linear_recurrence, linear_recurrence_flops
from shoestring.model.norm import RMSNorm
from shoestring.model.recurrent import Kept, RecurrentMixer
from shoestring.model.recurrent_cache import RecurrentState


@method(
    "model",
    kind="token mixer",
    name="lightning",
    paper="MiniMax-01: Scaling Foundation Models with Lightning Attention, arXiv:2501.08313",
    claim="with softmax attention in one layer of eight, quality comparable to top models at contexts of up to a million "
    "tokens, in training time linear in the length",
    cost="linear in the length: 4 width x width matrices and 4 head_width² FLOPs a head and token; a state of head_width² a head",
)
class Lightning(RecurrentMixer):
    """Linear attention with a fixed decay of each head, gated and normed. It has no positions: the decay tells near from far.

    MiniMax, 2025, arXiv:2501.08313; the tiling is that of Zhen Qin et al., Lightning Attention-2, arXiv:2401.04658.

    q, k, v = silu(W x), per head; S_t = exp(-s_h) S_{t-1} + k_t v_t^T; o_t = S_t^T q_t;
    y = W_out (sigmoid(W_gate x) * RMSNorm(o)). s_h = 2^(-8 h / H) (1 - l / (L - 1) + 1e-5), h = 1..H, of layer l of L: late layers
    remember longer. x: [B, T, width] -> [B, T, width].

    Cost: linear in T. State: heads x head_width x head_width numbers a row, whatever the length.
    Different from the paper: all heads have keys of their own.

    epsilon: of the norm. chunk: tokens of a chunk, which changes the speed alone.
    """

    reads = "qkv_gate"
    decay: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        epsilon: Epsilon = 1e-6,
        chunk: Annotated[int, Interval(ge=1, le=4096)] = CHUNK,
    ) -> None:
        super().__init__()
        if key_value_heads != heads:
            raise ValueError(
                f"lightning attention has keys of each head: key_value_heads = {key_value_heads} must be heads = {heads}"
            )
        self.heads, self.head_width, self.chunk = heads, head_width, chunk
        self.qkv_gate = nn.Linear(width, 4 * heads * head_width, bias=False)
        self.norm = RMSNorm(heads * head_width, epsilon=epsilon)
        self.output = nn.Linear(heads * head_width, width, bias=False)
        self.register_buffer("decay", torch.ones(heads))

    def placed(self, place: Place) -> None:
        """Set the decay as the layer's number has it. It is kept with the weights, so that a layer that moves keeps it."""
        share = 1 - place.layer / (place.layers - 1 + 1e-5) + 1e-5
        slopes = [share * 2 ** (-8 * (head + 1) / self.heads) for head in range(self.heads)]
        if self.decay.device.type != "meta":
            self.decay.copy_(torch.tensor(slopes))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        inner = self.heads * self.head_width
        mixed, gate = self.qkv_gate(x).split((3 * inner, inner), -1)
        q, k, v = F.silu(mixed).unflatten(-1, (3, self.heads, self.head_width)).unbind(2)
        decay = -self.decay.to(torch.promote_types(q.dtype, torch.float32)).expand(*q.shape[:3])
        state = None
        if cache is not None:
            if cache.real is not None:
                k = k * cache.real[..., None, None]
                decay = decay * cache.real[..., None]
            state = None if cache.fresh else cache.tensors["state"]
        o, last = linear_recurrence(
            q, k, v, decay, state=state, documents=documents, keep=cache is not None, chunk=self.chunk
        )
        if cache is not None and last is not None:
            cache.tensors["state"] = last.to(cache.tensors["state"].dtype)
        return self.output(gate.sigmoid() * self.norm(o.flatten(2)))

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row."""
        return {"state": Kept((self.heads, self.head_width, self.head_width), "wide")}

    def native_recurrence(self) -> Recurrence:
        """As the native library reads it."""
        each, columns = self.head_width, self.qkv_gate.out_features
        arrays = {"decay": self.decay}
        return Recurrence("lightning", self.heads, each, each, columns, arrays, norm=self.norm.native())

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: heads, and the width that it reads and writes."""
        inner, each = self.heads * self.head_width, self.head_width
        parts = tuple(Slice("qkv_gate.weight", 0, part * inner, each) for part in range(4))
        own = (Slice("output.weight", 1, 0, each), Slice("norm.weight", 0, 0, each), Slice("decay", 0))
        return (self.width_axis(), Axis("head", None, self.heads, parts + own))

    def resized(self) -> None:
        """Take the number of heads from the weights, which were cut."""
        self.heads = self.output.in_features // self.head_width

    def own_flops(self, shape: Shape, backward: bool) -> int:
        return linear_recurrence_flops(
            shape.rows,
            shape.new,
            self.heads,
            self.head_width,
            self.head_width,
            backward,
            past=shape.past,
            chunk=self.chunk,
        )
