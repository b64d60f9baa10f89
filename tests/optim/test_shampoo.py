import itertools
from typing import Any

import pytest
import torch
from reference_shampoo import shampoo
from torch import Tensor, nn

from shoestring.optim.kronecker import inverse_root
from shoestring.optim.polar import exact_polar
from shoestring.optim.shampoo import Shampoo

SHAPES = [(12, 6), (6, 12), (8, 8), (3, 10, 5), (10, 5)]


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def random_gradients(steps: int) -> list[list[Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient
        optimizer.step()


@pytest.mark.parametrize(("root", "graft"), [(4, "adam"), (4, "none"), (2, "adam"), (2, "none")])
@pytest.mark.parametrize("every", [1, 3])
def test_agrees_with_the_reference_over_several_steps(root: int, graft: Any, every: int) -> None:
    options: dict[str, Any] = {
        "lr": 0.05,
        "beta1": 0.9,
        "beta2": 0.8,
        "epsilon": 1e-8,
        "damping": 1e-2,
        "weight_decay": 0.1,
    }
    options |= {"root": root, "graft": graft, "every": every}
    parameters, gradients = matrices(), random_gradients(7)
    before = [parameter.detach().clone() for parameter in parameters]
    train(Shampoo(parameters, **options), parameters, gradients)
    for index, parameter in enumerate(parameters):
        rows, columns = parameter.shape[-2:]
        starts = before[index].reshape(-1, rows, columns)
        for layer, found in enumerate(parameter.detach().reshape(-1, rows, columns)):
            own = [step[index].reshape(-1, rows, columns)[layer] for step in gradients]
            torch.testing.assert_close(found.double(), shampoo(starts[layer], own, **options), rtol=1e-4, atol=1e-4)


def test_the_first_step_is_the_polar_factor_at_the_length_of_adams() -> None:
    """L^(-1/4) G R^(-1/4) of L = G G^T and R = G^T G is U V^T; Adam's first step has every element at lr."""
    torch.manual_seed(0)
    parameter, gradient = nn.Parameter(torch.zeros(8, 8)), torch.randn(8, 8)
    train(Shampoo([parameter], lr=0.1), [parameter], [[gradient]])
    expected = -exact_polar(gradient)
    torch.testing.assert_close(parameter.detach(), expected * 0.1 * 8 / expected.norm(), rtol=1e-2, atol=1e-3)


def test_one_short_side_takes_the_square_root_alone() -> None:
    torch.manual_seed(0)
    parameter, gradient = nn.Parameter(torch.zeros(9, 4)), torch.randn(9, 4)
    train(Shampoo([parameter], lr=1.0, graft="none", max_side=5, weight_decay=0.0), [parameter], [[gradient]])
    torch.testing.assert_close(parameter.detach(), -exact_polar(gradient), rtol=1e-2, atol=1e-3)


def test_the_roots_are_taken_every_so_many_steps() -> None:
    parameter = nn.Parameter(torch.zeros(4, 4))
    optimizer = Shampoo([parameter], every=3)
    seen = []
    for step in random_gradients(7):
        train(optimizer, [parameter], [[step[2][:4, :4].contiguous()]])
        seen.append(optimizer.state[parameter]["left_root"].clone())
    changed = [not torch.equal(one, other) for one, other in itertools.pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


def test_an_inverse_root_is_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 9)
    factors = x @ x.mT
    root = inverse_root(factors, 4, 1e-9)
    identity = torch.linalg.matrix_power(root, 4) @ factors
    torch.testing.assert_close(identity, torch.eye(6).expand(3, 6, 6), atol=1e-2, rtol=0)


@pytest.mark.parametrize("graft", ["adam", "none"])
@pytest.mark.parametrize("root", [2, 4])
def test_a_gradient_of_zeros_moves_nothing(graft: Any, root: Any) -> None:
    parameters = matrices()
    optimizer = Shampoo(parameters, graft=graft, root=root, weight_decay=0.0)
    train(optimizer, parameters, [[torch.zeros_like(p) for p in parameters]] * 2)
    assert all(torch.equal(now, was) for now, was in zip(parameters, matrices(), strict=True))


def test_step_flops_counts_the_products_and_the_roots() -> None:
    w = nn.Parameter(torch.zeros(4, 20, 10))
    assert Shampoo([w], every=10**9, max_side=15).step_flops() == 4 * 4 * 20 * 10 * 10
    assert Shampoo([w], every=1, max_side=15).step_flops() == 4 * (4 * 20 * 10 * 10 + 11 * 10**3)
