"""Ratios of scales by name, as fixed-point multipliers."""

import torch
from torch import Tensor, nn

from shoestring.quantise.integer_only.arithmetic import fixed_point


class FixedPointScales(nn.Module):
    """Of each name a ratio: `scales[name]` is (multipliers, shift), int32 tensors, as `requantise` takes them.

    sizes: of each name how many features have a ratio of their own; 0: one is for all.
    """

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            self.register_buffer(f"{name}_multiplier", torch.zeros((size,) if size else (), dtype=torch.int32))
            self.register_buffer(f"{name}_shift", torch.ones((), dtype=torch.int32))

    def fill(self, name: str, ratio: Tensor | float) -> None:
        """Set the ratio of a name, or those of its features."""
        multiplier, shift = fixed_point(torch.as_tensor(ratio, dtype=torch.float64))
        self.get_buffer(f"{name}_multiplier").copy_(multiplier)
        self.get_buffer(f"{name}_shift").fill_(shift)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{name}_multiplier"), self.get_buffer(f"{name}_shift")
