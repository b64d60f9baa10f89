"""A fixed rotation of what each layer reads, done where the model runs."""

import torch
from torch import Tensor

from shoestring.method import Seed, method
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.kronecker import Kronecker, factors
from shoestring.quantise.parts import Over, Transform


@method(
    "quantise",
    kind="transform",
    name="hadamard",
    paper="QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, arXiv:2404.00456",
    claim="rotations take outliers from hidden states without changing the output; LLaMA-2-70B in 4 bits keeps 99% of its accuracy",
    cost="where the model runs, a + b products for each number that a layer of a b columns reads",
)
class Hadamard(Transform):
    """Rotate what a layer reads, and its weights the other way: large numbers are spread over all columns before rounding.

    y = W x = (W P) (P^T x) with P orthogonal. P = A (x) B with A, B orthogonal of sizes a b = columns: each is a Hadamard matrix
    with random signs where its size is a power of two, else a random orthogonal one. Ashkboos et al. (2024), arXiv:2404.00456,
    fold most rotations into the weights, as `rotation` does; this one takes any model, and costs time.

    seed: of the signs.
    """

    def __init__(self, *, seed: Seed = 0) -> None:
        self.seed = seed

    def of_matrix(self, weight: Tensor, hessian: Tensor | None, format: CodeFormat, over: Over) -> Kronecker:
        """As `Transform.of_matrix`."""
        draw = torch.Generator().manual_seed(self.seed)
        return Kronecker(*(orthogonal(size, draw) for size in factors(weight.shape[1])))


def orthogonal(size: int, draw: torch.Generator) -> Tensor:
    """float32 [size, size], orthogonal: Hadamard's with random signs for a power of two, else of a random matrix."""
    if size & (size - 1) == 0:
        made = torch.ones(1, 1)
        while len(made) < size:
            made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
        signs = torch.randint(2, (size, 1), generator=draw) * 2.0 - 1
        return made * signs / size**0.5
    drawn = torch.randn(size, size, generator=draw, dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    return (q * r.diagonal().sign()).float()
