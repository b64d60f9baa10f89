"""Channel mixers of integers: SwiGLU, GELU and squared ReLU."""

import abc
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.cost import Shape
from shoestring.model.config import ModelConfig
from shoestring.quantise.integer_only.arithmetic import STREAM_BITS, requantise
from shoestring.quantise.integer_only.curve import IntegerOnlyCurve
from shoestring.quantise.integer_only.linear import IntegerOnlyLinear
from shoestring.quantise.integer_only.part import OUTPUT
from shoestring.quantise.integer_only.ranges import Ranges
from shoestring.quantise.integer_only.scales import FixedPointScales


def hidden_scales(ranges: Ranges) -> Tensor:
    """float64 [hidden]: the scale of each feature that the output matrix reads."""
    uneven = ranges.uneven(OUTPUT)
    return uneven * ranges.eight(OUTPUT, uneven)


class IntegerOnlySwiGLU(nn.Module):
    """The counterpart of `SwiGLU`. The gate and what it gates are int16, their product is int32, what `output` reads is int8."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = IntegerOnlyLinear(config.width, 2 * config.hidden)
        self.silu = IntegerOnlyCurve()
        self.scales = FixedPointScales(hidden=config.hidden)
        self.output = IntegerOnlyLinear(config.hidden, config.width)

    @staticmethod
    def looks(part: Any, x: Tensor) -> dict[str, Tensor]:
        gate, up = part.gate_up(x).chunk(2, -1)
        return {"gate": gate, "up": up}

    def fill(self, part: Any, ranges: Ranges, reads: Tensor, writes: float) -> None:
        """As `part` says."""
        gate, up, hidden = ranges.wide(16, "gate"), ranges.wide(16, "up"), hidden_scales(ranges)
        units = torch.tensor([gate, up], dtype=torch.float64).repeat_interleave(self.output.codes.shape[1])
        self.gate_up.fill(part.gate_up.weight, None, reads, units)
        self.silu.fill(F.silu, gate)
        self.scales.fill("hidden", gate * up / hidden)
        self.output.fill(part.output.weight, None, hidden, writes)

    def forward(self, x: Tensor) -> Tensor:
        """As `part` says."""
        gate, up = self.gate_up(x, 16).chunk(2, -1)
        hidden = requantise(self.silu(gate).to(torch.int32).mul_(up), *self.scales["hidden"], 8)
        return self.output(hidden, STREAM_BITS)

    def flops(self, shape: Shape) -> int:
        """As `part` says."""
        return self.gate_up.flops(shape.tokens) + self.output.flops(shape.tokens)


class IntegerOnlyTwoMatrices(nn.Module, abc.ABC):
    """The counterpart of a layer of two matrices: what is between them is the subclass's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = bool(config.channel_mixer.options.get("bias", False))
        self.input = IntegerOnlyLinear(config.width, config.hidden, bias)
        self.scales = FixedPointScales(hidden=config.hidden)
        self.output = IntegerOnlyLinear(config.hidden, config.width, bias)

    @staticmethod
    def looks(part: Any, x: Tensor) -> dict[str, Tensor]:
        return {"inside": part.input(x)}

    def fill(self, part: Any, ranges: Ranges, reads: Tensor, writes: float) -> None:
        """As `part` says."""
        inside, hidden = ranges.wide(16, "inside"), hidden_scales(ranges)
        self.input.fill(part.input.weight, part.input.bias, reads, inside)
        self.output.fill(part.output.weight, part.output.bias, hidden, writes)
        self.scales.fill("hidden", self.unit(part, inside) / hidden)

    @abc.abstractmethod
    def unit(self, part: Any, inside: float) -> float:
        """The scale of what `activated` makes of numbers of the scale `inside`."""

    @abc.abstractmethod
    def activated(self, x: Tensor) -> Tensor:
        """int16 or int32 of int16."""

    def forward(self, x: Tensor) -> Tensor:
        """As `part` says."""
        hidden = requantise(self.activated(self.input(x, 16)), *self.scales["hidden"], 8)
        return self.output(hidden, STREAM_BITS)

    def flops(self, shape: Shape) -> int:
        """As `part` says."""
        return self.input.flops(shape.tokens) + self.output.flops(shape.tokens)


class IntegerOnlyGELU(IntegerOnlyTwoMatrices):
    """The counterpart of `GELU`, of either form."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gelu = IntegerOnlyCurve()

    def unit(self, part: Any, inside: float) -> float:
        self.gelu.fill(partial(F.gelu, approximate=part.approximate), inside)
        return inside

    def activated(self, x: Tensor) -> Tensor:
        found: Tensor = self.gelu(x)
        return found


class IntegerOnlySquaredReLU(IntegerOnlyTwoMatrices):
    """The counterpart of `SquaredReLU`: int16 squared is int32."""

    def unit(self, part: Any, inside: float) -> float:
        return inside**2

    def activated(self, x: Tensor) -> Tensor:
        return x.to(torch.int32).clamp_(min=0).square_()
