"""Rotary positions: turn each pair of features of a query or key by an angle that grows with its position.

RoFormer: Enhanced Transformer with Rotary Position Embedding, arXiv:2104.09864. Feature i is paired with i + width / 2,
the convention of Hugging Face's Llama and Qwen3 (the paper pairs neighbours: the same up to an order of the features).
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from shoestring.errors import UsageError

ScalingValue = Annotated[float, Interval(ge=0, le=1e9)] | Annotated[int, Interval(ge=0, le=1_000_000_000)] | bool | str

Scaling = Mapping[str, float | int | bool | str]
"""What a model of longer context says of its frequencies, in the words of transformers: 'rope_type' and its numbers."""

SCALINGS = ("linear", "llama3", "yarn")
"""The types of `Scaling` whose frequencies do not depend on the text. transformers computes them."""


class Rotary(nn.Module):
    """Tables of cos(p f_i) and sin(p f_i), f_i = theta^(-2i / turned), for each position p below `context`.

    The sines of the first half carry the minus sign of the rotation, so that `rotate` needs no negation.

    share: of the features, how many are turned: the first pairs. The other pairs have a frequency of 0, and stay as they are.
    scaling: what is done to the frequencies for a longer context; None: nothing.
    Raises: UsageError for a scaling that is not known, or that lacks a number.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, head_width: int, context: int, theta: float, *, share: float = 1.0, scaling: Scaling | None = None
    ) -> None:
        super().__init__()
        if scaling is None and torch.get_default_device().type == "meta":
            # an outline has nothing to compute, and arithmetic on that device loads torch's compiler
            for name in ("cos", "sin"):
                self.register_buffer(name, torch.empty(context, 1, head_width), persistent=False)
            return
        turned = int(head_width * share) // 2 * 2
        frequencies, factor = _frequencies(turned, context, theta, scaling)
        angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        if factor != 1:
            cos, sin = cos * factor, sin * factor
        if turned < head_width:
            still = (context, (head_width - turned) // 2)
            cos, sin = torch.cat((cos, torch.ones(still)), -1), torch.cat((sin, torch.zeros(still)), -1)
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


def _frequencies(turned: int, context: int, theta: float, scaling: Scaling | None) -> tuple[Tensor, float]:
    """(frequencies [turned / 2], factor on cosines and sines)."""
    if scaling is None:
        return 1 / theta ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned), 1.0
    kind = scaling.get("rope_type")
    if kind not in SCALINGS:
        raise UsageError(f"rope_scaling has the rope_type '{kind}': known are {', '.join(SCALINGS)}")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = SimpleNamespace(  # what those functions read of a configuration
        rope_parameters={**scaling, "rope_theta": theta},
        head_dim=turned,
        hidden_size=turned,
        num_attention_heads=1,
        max_position_embeddings=context,
        standardize_rope_params=lambda: None,
    )
    try:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config)
    except KeyError as error:
        raise UsageError(f"rope_scaling of type '{kind}' needs {error}") from None
    return frequencies, float(factor)
