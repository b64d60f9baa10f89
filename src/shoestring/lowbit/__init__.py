"""Number formats of few bits: training with them, and computing with them.

`lower(model, Ternary())` has any `nn.Module` train with ternary weights; `formats/` has the formats.
"""

from shoestring.lowbit import gpu
from shoestring.lowbit.convert import Lowered, lower, lowered_layers, unpack
from shoestring.lowbit.format import Format, Quantised
from shoestring.lowbit.linear import LowBitLinear

__all__ = ["Format", "LowBitLinear", "Lowered", "Quantised", "gpu", "lower", "lowered_layers", "unpack"]
