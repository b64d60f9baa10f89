"""The keys and values of tokens already read, so that decoding reads each token once."""

import torch
from torch import Tensor


class KeyValueCache:
    """Room for the keys and values of `capacity` tokens in every layer, allocated once.

    keys, values: [layers, B, key_value_heads, capacity, head_width]. length: tokens held so far. Memory: 2 x layers x
    B x key_value_heads x capacity x head_width numbers.
    """

    def __init__(
        self, shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def layer(self, index: int, new: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values, [B, key_value_heads, length + new, head_width]: views, of which the token
        mixer fills the last `new` positions.
        """
        end = self.length + new
        return self.keys[index, :, :, :end], self.values[index, :, :, :end]

    def advance(self, new: int) -> None:
        """Count `new` more tokens as held, once every layer has filled them in."""
        self.length += new
