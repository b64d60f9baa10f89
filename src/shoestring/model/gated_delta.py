"""Gated delta rule: linear attention that replaces what a key stood for, and forgets at a rate that the text sets."""

from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.contract.role import VECTOR
from shoestring.kernels.recurrent import Recurrence
from shoestring.method import Epsilon, method
from shoestring.model.delta_rule import CHUNK, delta_rule, delta_rule_flops
from shoestring.model.norm import RMSNorm
from shoestring.model.recurrent import Kept, RecurrentMixer, draw_rates
from shoestring.model.recurrent_cache import RecurrentState
from shoestring.model.short_convolution import short_convolution


@method(
    "model",
    kind="token mixer",
    name="gated_delta",
    paper="Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv:2412.06464",
    claim="better than Mamba-2 and DeltaNet on language modelling, common-sense reasoning, in-context retrieval and long contexts",
    cost="linear in the length: 5 width² a token, and about 6 head_width² a head; a state of head_width² a head",
)
class GatedDelta(RecurrentMixer):
    """Linear attention whose state is corrected by the delta rule and decays by a gate.

    Songlin Yang, Jan Kautz and Ali Hatamizadeh, 2024, arXiv:2412.06464.

    (q, k, v) = silu(conv(W x)), q and k of length 1 per head; b = sigmoid(W_b x); log a = -exp(A_log) softplus(W_a x + bias);
    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T; o_t = S_t^T q_t / sqrt(head_width);
    y = W_out (RMSNorm(o) per head * silu(W_gate x)). x: [B, T, width] -> [B, T, width].

    Cost: linear in T. State: heads x head_width² numbers a row, and taps - 1 inputs of the convolution.
    Different from the paper: values are as wide as keys.

    taps: of the convolution. epsilon: of the norm. chunk: tokens of a chunk, which changes the speed alone.
    """

    compiles = False  # its chunks are gone through one by one, which a compiler writes out one by one
    roles: ClassVar[dict[str, str]] = {"taps": VECTOR}

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        taps: Annotated[int, Interval(ge=1, le=16)] = 4,
        epsilon: Epsilon = 1e-5,
        chunk: Annotated[int, Interval(ge=1, le=4096)] = CHUNK,
    ) -> None:
        super().__init__()
        if key_value_heads != heads:
            raise ValueError(
                f"the delta rule has keys of each head: key_value_heads = {key_value_heads}, heads = {heads}"
            )
        self.heads, self.head_width, self.count, self.chunk = heads, head_width, taps, chunk
        inner = heads * head_width
        self.input = nn.Linear(width, 4 * inner + 2 * heads, bias=False)
        self.taps = nn.Parameter(torch.empty(3 * inner, taps))
        self.a_log, self.dt_bias = (nn.Parameter(torch.empty(heads)) for _ in range(2))
        self.norm = RMSNorm(head_width, epsilon=epsilon)
        self.output = nn.Linear(inner, width, bias=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """A uniform in [1, 16], steps log-uniform in [0.001, 0.1]; taps uniform within 1 / sqrt(taps)."""
        bound = self.count**-0.5
        self.taps.uniform_(-bound, bound)
        if self.a_log.device.type != "meta":
            draw_rates(self.a_log, self.dt_bias)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        inner = self.heads * self.head_width
        mixed, gate, step, strength = self.input(x).split((3 * inner, inner, self.heads, self.heads), -1)
        found, whole = short_convolution(
            mixed, self.taps, None if cache is None else cache.tensors["inputs"], documents
        )
        q, k, v = F.silu(found).unflatten(-1, (3, self.heads, self.head_width)).unbind(2)
        wide = torch.promote_types(x.dtype, torch.float32)
        decay = -self.a_log.to(wide).exp() * F.softplus(step.to(wide) + self.dt_bias.to(wide))
        strength = strength.to(wide).sigmoid()
        if cache is not None and cache.real is not None:
            decay, strength = decay * cache.real[..., None], strength * cache.real[..., None]
        o, last = delta_rule(
            F.normalize(q, dim=-1) * self.head_width**-0.5,
            F.normalize(k, dim=-1),
            v,
            strength,
            decay,
            state=None if cache is None or cache.fresh else cache.tensors["state"],
            documents=documents,
            keep=cache is not None,
            chunk=self.chunk,
        )
        if cache is not None and last is not None:
            cache.tensors["state"] = last.to(cache.tensors["state"].dtype)
            cache.tensors["inputs"] = cache.last(whole, self.count - 1)
        return self.output(self.norm(o).flatten(2) * F.silu(gate))

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row."""
        state = Kept((self.heads, self.head_width, self.head_width), "wide")
        return {"state": state, "inputs": Kept((self.count - 1, len(self.taps)))}

    def native_recurrence(self) -> Recurrence:
        """As the native library reads it."""
        each, columns, channels = self.head_width, self.input.out_features, len(self.taps)
        arrays = {"decay": self.a_log, "step_bias": self.dt_bias, "kernel": self.taps}
        found = {name: tensor.detach() for name, tensor in arrays.items()}
        kept, norm = ("state", "inputs"), self.norm.native()
        return Recurrence(
            "gated_delta", self.heads, each, each, columns, found, kept, taps=self.count, channels=channels, norm=norm
        )

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: heads, and the width that it reads and writes."""
        inner, each = self.heads * self.head_width, self.head_width
        own = [Slice("input.weight", 0, part * inner, each) for part in range(4)]
        own += [Slice("input.weight", 0, 4 * inner), Slice("input.weight", 0, 4 * inner + self.heads)]
        own += [Slice("taps", 0, part * inner, each) for part in range(3)]
        own += [Slice("a_log", 0), Slice("dt_bias", 0), Slice("output.weight", 1, 0, each)]
        return (self.width_axis(), Axis("head", None, self.heads, tuple(own)))

    def resized(self) -> None:
        """Take the number of heads from the weights, which were cut."""
        self.heads = self.output.in_features // self.head_width

    def own_flops(self, shape: Shape, backward: bool) -> int:
        return delta_rule_flops(
            shape.rows,
            shape.new,
            self.heads,
            self.head_width,
            self.head_width,
            backward,
            past=shape.past,
            chunk=self.chunk,
        )
