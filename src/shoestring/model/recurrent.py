"""What token mixers with a state of their own share: how the state is made and counted, projections, and the axis of the width."""

import abc
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from shoestring.contract import cost
from shoestring.contract.anatomy import Axis, Slice
from shoestring.contract.cost import Shape
from shoestring.model.recurrent_cache import RecurrentState


class Kept(NamedTuple):
    """One tensor of the state of a row.

    size: its shape. kind: 'given' for the model's type, 'wide' for float32 or finer, as sums of many terms want, 'count' for int64.
    """

    size: tuple[int, ...]
    kind: Literal["given", "wide", "count"] = "given"

    def dtype(self, given: torch.dtype) -> torch.dtype:
        """The type that it is kept in, in a model of the type `given`."""
        if self.kind == "count":
            return torch.int64
        return given if self.kind == "given" else torch.promote_types(given, torch.float32)


class OwnState(nn.Module):
    """A token mixer that reads documents in place of a mask, and keeps a state of its own in place of keys and values.

    A state that does not grow is what `kept` says; one that grows has a `new_cache` of its own, and a `token_bytes`.
    """

    recurrent = True
    both_ways = False

    def kept(self) -> dict[str, Kept]:
        """The tensors of the state of a row, by name: those whose size does not depend on its length."""
        return {}

    def cache_shape(self) -> None:
        """Of each token, no plain key and value is kept."""

    def new_cache(self, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> Any:
        """The state of `rows` rows that have read nothing. room: the most tokens of a row."""
        return RecurrentState(
            {
                name: torch.zeros(rows, *one.size, dtype=one.dtype(dtype), device=device)
                for name, one in self.kept().items()
            }
        )

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the state of a row, however long it is."""
        return sum(torch.Size(one.size).numel() * one.dtype(dtype).itemsize for one in self.kept().values())

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that the state of a row grows by with each token."""
        return 0


class RecurrentMixer(OwnState, abc.ABC):
    """Reads x by one matrix, goes through the tokens with a running state, and writes by another.

    reads: the name of the matrix that reads x. output: the one that writes.
    """

    reads = "input"
    output: nn.Linear

    @abc.abstractmethod
    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None = None, cache: RecurrentState | None = None
    ) -> Tensor:
        """x [B, T, width] -> [B, T, width]. cos, sin: of the positions. documents: [B, T]. cache: of `new_cache`."""

    @abc.abstractmethod
    def own_flops(self, shape: Shape, backward: bool) -> int:
        """Operations between the two matrices. backward: whether gradients go back through them."""

    def width_axis(self) -> Axis:
        """The axis of the width that it reads and writes."""
        return Axis(
            "width",
            None,
            self.output.out_features,
            (Slice(f"{self.reads}.weight", 1), Slice("output.weight", 0)),
        )

    def axes(self) -> tuple[Axis, ...]:
        """The axes of its weights."""
        return (self.width_axis(),)

    def flops(self, shape: Shape, inputs: bool = True) -> int:
        """Operations of a pass. inputs: whether x takes a gradient. The convention is in `contract.cost`."""
        back = shape.backward
        inside = inputs or (back and self.inside_trains())
        projected = cost.linear(getattr(self, self.reads), shape.tokens, back, inputs)
        projected += cost.linear(self.output, shape.tokens, back, inside or self.after_trains())
        return projected + self.own_flops(shape, back and inside)

    def inside_trains(self) -> bool:
        """Whether what comes before the recurrence has weights that are trained."""
        return cost.trains(getattr(self, self.reads))

    def after_trains(self) -> bool:
        """Whether what comes after the recurrence, before the last matrix, has weights that are trained."""
        norm = getattr(self, "norm", None)
        return norm is not None and cost.trains(norm)


@torch.no_grad()
def draw_rates(a_log: Tensor, dt_bias: Tensor) -> None:
    """First values of a decay exp(-softplus(. + dt_bias) exp(a_log)): A uniform in [1, 16], steps log-uniform in [0.001, 0.1]."""
    a_log.uniform_(1, 16).log_()
    steps = dt_bias.uniform_(math.log(0.001), math.log(0.1)).exp_()
    dt_bias.copy_(steps + (-(-steps).expm1()).log())  # so that softplus gives them back
