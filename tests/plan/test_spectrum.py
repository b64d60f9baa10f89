import math

import pytest
import torch

from shoestring.errors import UsageError
from shoestring.plan.spectrum import Spectrum, heavy_ball, hessian_product, lanczos


def symmetric(values: torch.Tensor) -> torch.Tensor:
    turn = torch.linalg.qr(
        torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    return turn @ torch.diag(values) @ turn.T


def test_the_largest_eigenvalues_and_the_mean_are_found() -> None:
    values = torch.cat([torch.linspace(0.01, 1, 195, dtype=torch.float64), torch.tensor([5.0, 20.0, 50.0, -3.0, 80.0])])
    matrix = symmetric(values)
    found = lanczos(lambda v: matrix @ v, len(values), steps=40)
    assert found.largest == pytest.approx(80.0, rel=1e-8)
    assert float(found.values[0]) == pytest.approx(-3.0, rel=1e-6)
    assert float(found.weights.sum()) == pytest.approx(1.0)
    many = [lanczos(lambda v: matrix @ v, len(values), steps=40, seed=seed) for seed in range(30)]
    mean = sum(float((one.values * one.weights).sum()) for one in many) / len(many)
    assert mean == pytest.approx(float(values.mean()), rel=0.3)


def test_it_ends_where_the_space_does() -> None:
    matrix = symmetric(torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0], dtype=torch.float64))
    found = lanczos(lambda v: matrix @ v, 5, steps=5)
    assert found.values.tolist() == pytest.approx([1.0, 4.0])


def test_the_product_is_that_of_the_hessian() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    first, second = (
        torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(4, dtype=torch.float64, requires_grad=True),
    )

    def loss_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((torch.tanh(inputs @ a) @ b - targets) ** 2).mean()

    product = hessian_product(lambda: loss_of(first, second), [first, second])
    flat = torch.cat([first.detach().reshape(-1), second.detach()])
    whole = torch.func.hessian(lambda x: loss_of(x[:12].reshape(3, 4), x[12:]))(flat)
    vector = torch.randn(16, dtype=torch.float64)
    assert product(vector).tolist() == pytest.approx((whole @ vector).tolist())
    found = lanczos(product, 16, steps=16)
    assert found.largest == pytest.approx(float(torch.linalg.eigvalsh(whole).max()), rel=1e-8)


def test_its_rate_and_momentum_are_the_best_of_a_quadratic() -> None:
    values = torch.tensor([1.0, 3.0, 25.0], dtype=torch.float64)
    rate, momentum = heavy_ball(Spectrum(values, torch.full((3,), 1 / 3, dtype=torch.float64)))

    def slowest(lr: float, beta: float) -> float:
        """The factor by which the worst direction shrinks a step."""
        steps = [torch.tensor([[1 + beta - lr * v, -beta], [1.0, 0.0]], dtype=torch.float64) for v in values]
        return max(float(torch.linalg.eigvals(step).abs().max()) for step in steps)

    best = slowest(rate, momentum)
    assert best == pytest.approx(math.sqrt(momentum), rel=1e-4)
    for factor in (0.8, 1.2):
        assert slowest(rate * factor, momentum) > best
        assert slowest(rate, momentum * factor) > best
    with pytest.raises(UsageError, match="no eigenvalue"):
        heavy_ball(Spectrum(-values, values))
    with pytest.raises(UsageError, match="no number"):
        lanczos(lambda v: v * math.nan, 4)
