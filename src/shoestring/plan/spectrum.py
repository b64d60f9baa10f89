"""The spectrum of a Hessian by Lanczos quadrature, and the learning rate and momentum that it proposes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.errors import UsageError

Product = Callable[[Tensor], Tensor]
"""A vector [n] -> the Hessian times it [n]."""


@dataclass(frozen=True)
class Spectrum:
    """values: [steps], Ritz values, rising. weights: [steps], the share of the spectrum at each, which sum to 1."""

    values: Tensor
    weights: Tensor

    @property
    def largest(self) -> float:
        return float(self.values[-1])

    def smallest_positive(self, least: float = 1e-3) -> float:
        """The smallest value that is at least this share of the largest: below it directions are as good as flat."""
        return float(self.values[self.values >= least * self.largest].min())


def lanczos(product: Product, size: int, *, steps: int = 20, seed: int = 0) -> Spectrum:
    """Eigenvalues and their weights as the Hessian's density has them, from `steps` products with it.

    The Lanczos method from a random start: its tridiagonal matrix has the extreme eigenvalues of the Hessian, and the first
    components of its eigenvectors, squared, are the weights of a Gauss quadrature of the spectral density. Each vector is made
    orthogonal to all before, twice, as rounding undoes it. Learning Rates as a Function of Batch Size: A Random Matrix Theory
    Approach to Neural Network Training, arXiv:2006.09092.

    product: with the Hessian, or with any symmetric matrix.
    size: n, of the vectors.
    Raises: UsageError for a product that is no number.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(size, generator=generator, dtype=torch.float64)
    basis = [vector / vector.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, size)):
        found = product(basis[-1]).to(torch.float64)
        if not bool(found.isfinite().all()):
            raise UsageError(
                "the product with the Hessian is no number: the loss is not finite or not twice differentiable"
            )
        diagonal.append(float(found @ basis[-1]))
        known = torch.stack(basis)
        for _ in range(2):
            found = found - known.T @ (known @ found)
        length = float(found.norm())
        if length < 1e-10 * max(abs(value) for value in (*diagonal, 1e-300)):
            break
        beside.append(length)
        basis.append(found / length)
    count = len(diagonal)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    for at, value in enumerate(beside[: count - 1]):
        matrix[at, at + 1] = matrix[at + 1, at] = value
    values, vectors = torch.linalg.eigh(matrix)
    return Spectrum(values, vectors[0] ** 2)


def hessian_product(loss: Callable[[], Tensor], parameters: list[Tensor]) -> Product:
    """The product with the Hessian of a loss by all parameters, flattened, by differentiating the gradient once more.

    loss: of one batch, always the same; it is computed once.
    """
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def product(vector: Tensor) -> Tensor:
        found = torch.autograd.grad(
            flat, parameters, grad_outputs=vector.to(flat), retain_graph=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in found]).detach()

    return product


def heavy_ball(spectrum: Spectrum) -> tuple[float, float]:
    """(learning rate, momentum) that are best for a quadratic of this spectrum:

        rate = (2 / (sqrt(largest) + sqrt(smallest)))^2,  momentum = ((sqrt(largest) - sqrt(smallest)) / (their sum))^2

    Raises: UsageError where no eigenvalue is positive.
    """
    if spectrum.largest <= 0:
        raise UsageError("no eigenvalue of the Hessian is positive: there is nothing to tell a learning rate from")
    high, low = math.sqrt(spectrum.largest), math.sqrt(spectrum.smallest_positive())
    return (2 / (high + low)) ** 2, ((high - low) / (high + low)) ** 2
