"""Rotary positions: turn each pair of features of a query or key by an angle that grows with its position.

RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864. Feature i is paired with i + width / 2,
the convention of Hugging Face's Llama and Qwen3 (the paper pairs neighbours: the same up to an order of the features).
"""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Tables of cos(p f_i) and sin(p f_i), f_i = theta^(-2i / head_width), for each position p below `context`.

    The sines of the first half carry the minus sign of the rotation, so that `rotate` needs no negation.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, context: int, theta: float) -> None:
        super().__init__()
        frequencies = 1 / theta ** (torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
        angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat((cos, cos), -1)[:, None], persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), -1)[:, None], persistent=False)

    def forward(self, start: int, length: int, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The tables of positions start .. start + length - 1, [length, 1, head_width], or of `positions` [B, T]
        (which may start anew within a row), [B, T, 1, head_width]; the axis of size 1 is for the heads.
        """
        if positions is not None:
            return self.cos[positions], self.sin[positions]
        return self.cos[start : start + length], self.sin[start : start + length]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, T, heads, head_width] turned by the tables of `Rotary`: three operations, no concatenation."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
