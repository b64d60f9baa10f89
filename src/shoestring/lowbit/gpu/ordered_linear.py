"""A packed linear layer whose only copy of its matrix lies in the order that the GPU reads."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.lowbit.gpu.operators import ordered_matmul
from shoestring.lowbit.gpu.order import Order, check_words, reorder, restore
from shoestring.lowbit.packed_linear import PackedLinear


class OrderedLinear(nn.Module):
    """y = s W x, W in {-1, 0, 1} [rows, columns], s the scales of its rows (or of runs of a row); activations as they come.

    x: float16, bfloat16 or float32 [..., columns] -> [..., rows] of its type. words: int16, as `order.reorder` makes them;
    scales: float32 [rows, groups], which stay float32 whatever type the model is turned into. No bias, no gradient.
    Raises: ShoestringError where these do not fit each other.
    """

    words: Tensor
    scales: Tensor

    def __init__(self, words: Tensor, scales: Tensor, rows: int, columns: int, layout: str) -> None:
        super().__init__()
        check_words(words, Order(rows, columns, scales.shape[1]))
        if scales.dtype != torch.float32 or len(scales) != rows:
            raise ShoestringError(f"the scales of {rows} rows are not {scales.dtype} {list(scales.shape)}")
        self.in_features, self.out_features, self.layout = columns, rows, layout
        self.register_buffer("words", words)
        self.register_buffer("scales", scales)

    @classmethod
    def of(cls, layer: PackedLinear) -> "OrderedLinear":
        """The same layer, on its device."""
        order = Order(layer.out_features, layer.in_features, layer.scales.shape[1])
        words = reorder(layer.packed, order, layer.layout)
        return cls(words, layer.scales, layer.out_features, layer.in_features, layer.layout)

    def packed(self) -> PackedLinear:
        """The layer it was made of, byte for byte."""
        order = Order(self.out_features, self.in_features, self.scales.shape[1])
        packed = restore(self.words, order, self.layout)
        return PackedLinear(packed, self.scales, self.out_features, self.in_features, self.layout)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(math.prod(x.shape[:-1]), self.in_features)
        return ordered_matmul(flat, self.words, self.scales, self.out_features, self.in_features).view(
            *x.shape[:-1], self.out_features
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OrderedLinear":
        scales = self.scales
        super()._apply(fn, recurse)
        self.scales = scales.to(self.words.device)  # not in 16 bits where the model is
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, layout={self.layout}"


def order_for_gpu(model: nn.Module, device: torch.device | str = "cuda") -> nn.Module:
    """`model` on `device`, every `PackedLinear` in it replaced by an `OrderedLinear`, one after the other.

    Beside the model, one matrix at a time is held twice. The model cannot be saved as a packed model until
    `OrderedLinear.packed` puts the layers back. Returns the model (or the new layer, where the model was one).
    """
    if isinstance(model, PackedLinear):
        return OrderedLinear.of(model.to(device))
    made: dict[int, OrderedLinear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, PackedLinear):
                if id(child) not in made:
                    made[id(child)] = OrderedLinear.of(child.to(device))
                setattr(parent, name, made[id(child)])
    return model.to(device)
