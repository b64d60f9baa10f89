"""A polar factor in the leading directions only: a random sketch finds them, and a small Newton-Schulz does the rest."""

import torch
from torch import Tensor

from shoestring.optim.uncompiled import uncompiled


def low_rank_basis(matrices: Tensor, *, size: int, power: int, seed: int) -> Tensor:
    """Orthonormal columns Q [..., m, size], float32, that span about the `size` leading left directions of [..., m, n].

    Q = qr((M M^T)^power M Omega), Omega [n, size] standard normal: the range finder of Halko, Martinsson & Tropp (2011),
    Finding Structure with Randomness, arXiv:0909.4061, Algorithm 4.3. power: a direction of singular value s weighs
    s^(2 power + 1) in the sketch, so rounding hides those below 0.005 of the largest at power 1, below 0.04 at 2. Omega
    is drawn on the CPU from `seed` alone, one for all matrices: the same on every device, however these are batched.
    """
    wide = matrices.float()
    sketch = wide @ _normal(wide.size(-1), size, seed).to(wide.device)
    for _ in range(power):
        # the scale is taken out: the third power of a small gradient may leave float32's range
        sketch = sketch / (torch.linalg.vector_norm(sketch, dim=(-2, -1), keepdim=True) + 1e-30)
        sketch = wide @ (wide.mT @ sketch)
    return torch.linalg.qr(sketch).Q


@uncompiled(reason="a generator cannot be traced")
def _normal(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def low_rank_flops(r: int, q: int, size: int, power: int) -> int:
    """Operations of `low_rank_basis` on an r x q matrix, r <= q, of Q^T M, and of Q times its polar factor.

    2 r q size for each product with M, of which there are 2 + 2 power, and 2 r size q for the last; the QR takes
    4 r size^2 - 4/3 size^3, Q included (Golub & Van Loan, Matrix Computations, 5.2.9).
    """
    return (3 + 2 * power) * 2 * r * q * size + qr_flops(r, size)


def qr_flops(r: int, size: int) -> int:
    """Operations of the QR decomposition of an r x size matrix, its Q written out."""
    return 4 * r * size**2 - 4 * size**3 // 3
