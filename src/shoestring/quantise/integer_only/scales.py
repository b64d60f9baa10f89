"""Ratios of scales by name, as fixed-point multipliers."""

import torch
from torch import Tensor, nn

from shoestring.quantise.integer_only.arithmetic import fixed_point


class FixedPointScales(nn.Module):
    """Of each name one ratio: `scales[name]` is (multiplier, shift), int32 tensors of one number, as `requantise` takes them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(f"{name}_multiplier", torch.zeros((), dtype=torch.int32))
            self.register_buffer(f"{name}_shift", torch.ones((), dtype=torch.int32))

    def fill(self, name: str, ratio: float) -> None:
        """Set the ratio of a name."""
        multiplier, shift = fixed_point(torch.tensor([ratio], dtype=torch.float64))
        self.get_buffer(f"{name}_multiplier").fill_(multiplier[0])
        self.get_buffer(f"{name}_shift").fill_(shift)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{name}_multiplier"), self.get_buffer(f"{name}_shift")
