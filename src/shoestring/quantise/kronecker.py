"""An invertible matrix that is the Kronecker product of two small ones: cheap to apply to what a linear layer reads."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kronecker:
    """P = A (x) B, [a b, a b]. x P costs (a + b) products for each of its a b numbers.

    left: A, float32 [a, a]. right: B, float32 [b, b].
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        return len(self.left) * len(self.right)

    def times(self, x: Tensor) -> Tensor:
        """x P, [..., a b]."""
        parts = x.unflatten(-1, (len(self.left), len(self.right)))
        return (self.left.to(x.dtype).T @ (parts @ self.right.to(x.dtype))).flatten(-2)

    @property
    def transposed(self) -> "Kronecker":
        """P^T = A^T (x) B^T."""
        return Kronecker(self.left.T.contiguous(), self.right.T.contiguous())

    @property
    def inverse(self) -> "Kronecker":
        """P^-1 = A^-1 (x) B^-1."""
        return Kronecker(*(torch.linalg.inv(part.double()).to(part.dtype) for part in (self.left, self.right)))

    def of_weight(self, weight: Tensor) -> Tensor:
        """W P^-T, by which y = W x is (W P^-T) (P^T x). weight: [out, a b]."""
        return self.inverse.transposed.times(weight)

    def of_hessian(self, hessian: Tensor) -> Tensor:
        """P^T H P, the second moments of x P. hessian: [a b, a b]."""
        half = self.times(hessian)
        return self.times(half.T.contiguous()).T.contiguous()


def factors(size: int) -> tuple[int, int]:
    """(a, b) with a b = size and a <= b, as near to each other as can be."""
    small = next(a for a in range(math.isqrt(size), 0, -1) if size % a == 0)
    return small, size // small
