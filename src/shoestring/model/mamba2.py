"""Mamba-2: a state-space layer whose decay depends on the text, computed in chunks."""

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
from shoestring.model.linear_recurrence import CHUNK, linear_recurrence, linear_recurrence_flops
from shoestring.model.norm import RMSNorm
from shoestring.model.recurrent import Kept, RecurrentMixer, draw_rates
from shoestring.model.recurrent_cache import RecurrentState
from shoestring.model.short_convolution import short_convolution


@method(
    "model",
    kind="token mixer",
    name="mamba2",
    paper="Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality, "
    "arXiv:2405.21060; NVIDIA Nemotron Nano 2: An Accurate and Efficient Hybrid Mamba-Transformer Reasoning Model, "
    "arXiv:2508.14444",
    claim="2 to 8 times as fast as Mamba's layer, and competitive with Transformers on language modelling; with a few attention "
    "layers, up to 6 times the throughput at long outputs",
    cost="linear in the length: two matrices of about 2 expand width², and 4 inner x state FLOPs a token",
)
class Mamba2(RecurrentMixer):
    """A gated state-space layer: each head forgets at a rate that the text sets.

    Tri Dao and Albert Gu, 2024, arXiv:2405.21060; among attention layers: NVIDIA, 2025, arXiv:2508.14444.

    (z, x, B, C, dt) = W_in u; (x, B, C) = silu(conv(x, B, C)); dt = softplus(dt + bias); a = exp(-dt exp(A_log));
    S_t = a_t S_{t-1} + dt_t B_t x_t^T; y_t = S_t^T C_t + D x_t; out = W_out RMSNorm(y * silu(z)).
    x, z: [B, T, inner], inner = expand width, in heads of `head`; B, C: [B, T, groups state], shared by the heads of a
    group, which stand one after the other.
    u: [B, T, width] -> [B, T, width].

    Cost: linear in T. State: inner x state numbers a row, and taps - 1 inputs of the convolution.
    Different from the paper: the norm is over all groups; no limits on dt.

    expand: inner width over the width. head: features of a head; 0: the model's head_width. state: size of B and C.
    groups: of B and C.
    taps: of the convolution. epsilon: of the norm. chunk: tokens of a chunk, which changes the speed alone.
    """

    roles: ClassVar[dict[str, str]] = {"taps": VECTOR}

    def __init__(
        self,
        width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        *,
        expand: Annotated[float, Interval(gt=0, le=16)] = 2.0,
        head: Annotated[int, Interval(ge=0, le=4096)] = 0,
        state: Annotated[int, Interval(ge=1, le=4096)] = 64,
        groups: Annotated[int, Interval(ge=1, le=4096)] = 1,
        taps: Annotated[int, Interval(ge=1, le=16)] = 4,
        epsilon: Epsilon = 1e-5,
        chunk: Annotated[int, Interval(ge=1, le=4096)] = CHUNK,
    ) -> None:
        super().__init__()
        self.head, self.state, self.chunk = head or head_width, state, chunk
        inner = round(expand * width)
        if inner % self.head:
            raise ValueError(f"an inner width of {inner} = expand x width does not divide into heads of {self.head}")
        self.inner, self.heads, self.count, self.groups = inner, inner // self.head, taps, groups
        if self.heads % groups:
            raise ValueError(f"{self.heads} heads, of expand x width / head, do not divide into {groups} groups")
        mixed = inner + 2 * groups * state
        self.input = nn.Linear(width, inner + mixed + self.heads, bias=False)
        self.taps = nn.Parameter(torch.empty(mixed, taps))
        self.taps_bias = nn.Parameter(torch.empty(mixed))
        self.a_log, self.dt_bias, self.skip = (nn.Parameter(torch.empty(self.heads)) for _ in range(3))
        self.norm = RMSNorm(inner, epsilon=epsilon)
        self.output = nn.Linear(inner, width, bias=False)
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """A uniform in [1, 16], dt log-uniform in [0.001, 0.1], D = 1; taps uniform within 1 / sqrt(taps)."""
        bound = self.count**-0.5
        self.taps.uniform_(-bound, bound)
        self.taps_bias.zero_()
        if self.a_log.device.type != "meta":
            draw_rates(self.a_log, self.dt_bias)
            self.skip.fill_(1.0)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: not read. documents: [B, T]. cache: of `new_cache`."""
        each = self.groups * self.state
        gate, mixed, dt = self.input(x).split((self.inner, self.inner + 2 * each, self.heads), -1)
        past = None if cache is None else cache.tensors["inputs"]
        found, whole = short_convolution(mixed, self.taps, past, documents)
        found = F.silu(found + self.taps_bias.to(found.dtype))
        values, keys, queries = found.split((self.inner, each, each), -1)
        wide = torch.promote_types(dt.dtype, torch.float32)
        steps = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        if cache is not None and cache.real is not None:
            steps = steps * cache.real[..., None]
        v = values.unflatten(-1, (self.heads, self.head))
        y, last = linear_recurrence(
            self._of_heads(queries),
            self._of_heads(keys),
            v * steps[..., None].to(v.dtype),
            -steps * self.a_log.to(wide).exp(),
            state=None if cache is None or cache.fresh else cache.tensors["state"],
            documents=documents,
            keep=cache is not None,
            chunk=self.chunk,
        )
        if cache is not None and last is not None:
            cache.tensors["state"] = last.to(cache.tensors["state"].dtype)
            cache.tensors["inputs"] = cache.last(whole, self.count - 1)
        y = y + self.skip.to(y.dtype)[:, None] * v
        return self.output(self.norm(y.flatten(2) * F.silu(gate)))

    def _of_heads(self, shared: Tensor) -> Tensor:
        """[B, T, heads, state], or [B, T, 1, state] where all heads share it, of [B, T, groups state]."""
        by_group = shared.unflatten(-1, (self.groups, self.state))
        return by_group if self.groups == 1 else by_group.repeat_interleave(self.heads // self.groups, 2)

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row."""
        state = Kept((self.heads, self.state, self.head), "wide")
        return {"state": state, "inputs": Kept((self.count - 1, len(self.taps)))}

    def native_recurrence(self) -> Recurrence:
        """As the native library reads it."""
        arrays = {"decay": self.a_log, "step_bias": self.dt_bias, "skip": self.skip, "kernel": self.taps}
        arrays["kernel_bias"] = self.taps_bias
        return Recurrence(
            "mamba2",
            self.heads,
            self.state,
            self.head,
            self.input.out_features,
            {name: tensor.detach() for name, tensor in arrays.items()},
            ("state", "inputs"),
            shared=self.groups,
            taps=self.count,
            channels=len(self.taps),
            norm=self.norm.native(),
        )

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights: heads, the channels of each, the state, and the width that it reads and writes."""
        inner, each, state = self.inner, self.head, self.groups * self.state
        own = (
            Slice("input.weight", 0, 0, each),
            Slice("input.weight", 0, inner, each),
            Slice("input.weight", 0, 2 * inner + 2 * state),
            Slice("taps", 0, 0, each),
            Slice("taps_bias", 0, 0, each),
            Slice("a_log", 0),
            Slice("dt_bias", 0),
            Slice("skip", 0),
            Slice("norm.weight", 0, 0, each),
            Slice("output.weight", 1, 0, each),
        )
        names = ("input.weight", 0, 0), ("input.weight", 0, inner), ("taps", 0, 0), ("taps_bias", 0, 0)
        names += (("norm.weight", 0, 0), ("output.weight", 1, 0))  # type: ignore[assignment]
        channels = tuple(
            Slice(name, dim, start + head * each) for name, dim, start in names for head in range(self.heads)
        )
        by_group = tuple(
            Slice(name, 0, start + place * self.state)
            for name, start in (("input.weight", 2 * inner), ("taps", inner), ("taps_bias", inner))
            for place in range(2 * self.groups)
        )
        return (
            self.width_axis(),
            Axis("head", None, self.heads, own, runs=self.groups),
            Axis("ssm_channel", None, each, channels),
            Axis("ssm_state", None, self.state, by_group),
        )

    def resized(self) -> None:
        """Take the sizes from the weights, which were cut."""
        self.inner, self.heads = self.output.in_features, len(self.a_log)
        self.head = self.inner // self.heads
        self.state = (len(self.taps) - self.inner) // (2 * self.groups)

    def own_options(self) -> dict[str, float | int]:
        """The options that make a mixer of these sizes, whatever the model's heads are."""
        return {"expand": self.inner / self.output.out_features, "head": self.head, "state": self.state}

    def own_flops(self, shape: Shape, backward: bool) -> int:
        return linear_recurrence_flops(
            shape.rows,
            shape.new,
            self.heads,
            self.state,
            self.head,
            backward,
            past=shape.past,
            chunk=self.chunk,
            key_heads=1 if self.groups == 1 else self.heads,
        )
