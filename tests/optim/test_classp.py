"""CLASSP beside a slow reference; power 2 without a threshold is torch's AdaGrad."""

import pytest
import torch
from torch import nn

from shoestring.optim.classp import CLASSP


def gradients(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 4, generator=generator) * 10 ** float(-(step % 3)) for step in range(steps)]


@pytest.mark.parametrize(("power", "threshold", "decay"), [(1.0, 0.01, 0.0), (2.0, 0.0, 0.0), (3.0, 0.1, 0.05)])
def test_it_is_its_formula_number_by_number(power: float, threshold: float, decay: float) -> None:
    parameter = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
    slow, sums = parameter.detach().clone().double(), torch.zeros(3, 4, dtype=torch.float64)
    options = {"lr": 0.1, "power": power, "threshold": threshold, "epsilon": 1e-6, "weight_decay": decay}
    optimizer = CLASSP([parameter], **options)
    for gradient in gradients(7):
        parameter.grad = gradient.clone()
        optimizer.step()
        for row in range(3):
            for column in range(4):
                g = float(gradient[row, column])
                if g * g > threshold:
                    sums[row, column] += abs(g) ** power
                    step = g / (float(sums[row, column]) + 1e-6) ** (1 / power) + decay * float(slow[row, column])
                    slow[row, column] -= 0.1 * step
        torch.testing.assert_close(parameter.detach().double(), slow, atol=1e-5, rtol=1e-5)


def test_power_two_without_a_threshold_is_adagrad() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    one, other = CLASSP([ours], lr=0.1, threshold=0.0, epsilon=1e-12), torch.optim.Adagrad([theirs], lr=0.1, eps=0.0)
    for gradient in gradients(5):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_small_gradients_move_nothing() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = CLASSP([parameter], threshold=0.01)
    parameter.grad = torch.tensor([0.05, 0.2, -0.09])
    optimizer.step()
    assert (parameter.detach() != 1).tolist() == [False, True, False]
