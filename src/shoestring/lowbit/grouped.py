"""Layers whose matrices have 4 or 8 bits in groups of 32 columns, as GGUF files hold them. They take no gradient; inputs do."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoestring.errors import ShoestringError
from shoestring.kernels.decoder import GROUPED, KernelMatrix
from shoestring.lowbit import kernels
from shoestring.lowbit.packing import grouped
from shoestring.lowbit.packing.grouped import GroupedMatrix
from shoestring.lowbit.straight_through import straight_through


class GroupedLinear(nn.Module):
    """y = W x̂ + b. W [rows, columns] has 4 or 8 bits a weight; x̂ is x rounded to int8 in groups of 32 columns.

    x: [..., columns] of a floating type -> the same type [..., rows]. For counting operations it is an `nn.Linear`. x takes a
    gradient, to which its rounding counts as none.
    packed: uint8, as `packing.grouped` lays it out. bias: float32 [rows], or None.
    Raises: ShoestringError where these do not fit each other.
    """

    packed: Tensor
    bias: Tensor | None
    constant: ClassVar[bool] = True
    """As `PackedLinear.constant`."""

    def __init__(self, packed: Tensor, rows: int, columns: int, bits: int, bias: Tensor | None = None) -> None:
        super().__init__()
        grouped.check(packed, rows, columns, bits)
        if bias is not None and (bias.dtype != torch.float32 or bias.shape != (rows,)):
            raise ShoestringError(f"a bias of {rows} rows is float32 [{rows}], not {bias.dtype} {list(bias.shape)}")
        self.in_features, self.out_features, self.bits = columns, rows, bits
        self.register_buffer("packed", packed)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, matrix: GroupedMatrix, columns: int, bias: Tensor | None = None) -> "GroupedLinear":
        """Packed from codes, scales and minimums; nothing is lost."""
        return cls(grouped.pack(matrix), len(matrix.scales), columns, matrix.bits, bias)

    def groups(self) -> GroupedMatrix:
        """The codes, scales and minimums it was made of."""
        return grouped.unpack(self.packed, self.out_features, self.in_features, self.bits)

    def computed_weight(self) -> Tensor:
        """float32 [rows, columns]: what is multiplied by."""
        return self._rows(0, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return straight_through(x, self._product, self._rows, self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        flat = _flat(x, self.in_features)
        y = kernels.grouped_matmul(flat, self.packed, self.out_features, self.in_features, self.bits)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def _rows(self, first: int, last: int) -> Tensor:
        return _values(self.packed, first, last, self.out_features, self.in_features, self.bits)

    def native_matrix(self) -> KernelMatrix:
        """As the native decoder reads it."""
        shape = self.out_features, self.in_features
        return KernelMatrix(self.packed, *shape, GROUPED[self.bits], bias=self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class GroupedEmbedding(nn.Module):
    """The rows of a matrix in groups, looked up by number, and the logits of hidden states against all of them.

    packed: uint8, as `packing.grouped` lays it out. Raises: ShoestringError where it does not fit.
    """

    packed: Tensor
    constant: ClassVar[bool] = True
    """As `PackedLinear.constant`."""

    def __init__(self, packed: Tensor, rows: int, columns: int, bits: int) -> None:
        super().__init__()
        grouped.check(packed, rows, columns, bits)
        self.num_embeddings = self.out_features = rows
        self.embedding_dim = self.in_features = columns
        self.bits = bits
        self.register_buffer("packed", packed)

    @classmethod
    def of(cls, matrix: GroupedMatrix, columns: int) -> "GroupedEmbedding":
        """Packed from codes, scales and minimums; nothing is lost."""
        return cls(grouped.pack(matrix), len(matrix.scales), columns, matrix.bits)

    def groups(self) -> GroupedMatrix:
        """The codes, scales and minimums it was made of."""
        return grouped.unpack(self.packed, self.out_features, self.in_features, self.bits)

    def forward(self, ids: Tensor) -> Tensor:
        """float32 [..., columns]: the rows of `ids` [...]. Raises: IndexError for an id that there is none of."""
        found = kernels.grouped_rows(self.packed, ids.flatten(), self.num_embeddings, self.embedding_dim, self.bits)
        return found.reshape(*ids.shape, self.embedding_dim)

    def computed_weight(self) -> Tensor:
        """float32 [rows, columns]: what its codes stand for."""
        return self._rows(0, self.num_embeddings)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., rows]: the products of hidden states [..., columns] with every row."""
        return straight_through(hidden, self._products, self._rows, self.out_features)

    def _rows(self, first: int, last: int) -> Tensor:
        return _values(self.packed, first, last, self.num_embeddings, self.embedding_dim, self.bits)

    def _products(self, hidden: Tensor) -> Tensor:
        flat = _flat(hidden, self.in_features)
        found = kernels.grouped_matmul(flat, self.packed, self.out_features, self.in_features, self.bits)
        return found.view(*hidden.shape[:-1], self.out_features).float()

    def extra_repr(self) -> str:
        return f"num_embeddings={self.num_embeddings}, embedding_dim={self.embedding_dim}, bits={self.bits}"


def _flat(x: Tensor, columns: int) -> Tensor:
    """[tokens, columns]: as the kernels take it, which on a CPU is float32."""
    flat = x.reshape(math.prod(x.shape[:-1]), columns)
    return flat.float() if flat.is_cpu else flat


def _values(packed: Tensor, first: int, last: int, rows: int, columns: int, bits: int) -> Tensor:
    """float32 [last - first, columns]: rows of a packed matrix in plain numbers."""
    which = torch.arange(first, last, device=packed.device)
    return grouped.some_rows(packed, which, rows, columns, bits).values()[:, :columns]
