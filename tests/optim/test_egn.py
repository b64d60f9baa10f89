"""Exact Gauss-Newton against the system of all parameters that the paper starts from."""

import pytest
import torch
from torch import Tensor, nn

from shoestring.optim.curvature import LogitsCurvature
from shoestring.optim.egn import EGN

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 2, 1, -100, 1, 2])


def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def gauss_newton(model: nn.Module) -> Tensor:
    """J'QJ / b over the places that count, by the Jacobian of the logits written out, [d, d] in float64."""
    names, values = zip(*model.named_parameters(), strict=True)

    def logits(*given: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, given, strict=True)), (INPUTS[TARGETS != -100],))

    jacobians = torch.autograd.functional.jacobian(logits, tuple(v.detach() for v in values))
    whole = torch.cat([one.flatten(2) for one in jacobians], 2).double()  # [b, V, d]
    chances = logits(*values).detach().softmax(-1).double()
    middle = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    return torch.einsum("bvd,bvw,bwe->de", whole, middle, whole) / len(whole)


def curvature(model: nn.Module, seed: int = 0) -> LogitsCurvature:
    return LogitsCurvature(
        lambda: model(INPUTS), TARGETS, seed=seed, gradient_flops=300, product_flops=900, forward_flops=100
    )


def test_a_step_solves_the_papers_system() -> None:
    """(J'QJ / b + lambda I) x = g, of [d, d], solved as it stands."""
    model = head()
    before = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    optimizer = EGN(model.parameters(), lr=0.5, damping=0.07, rows=0, momentum=0.0)
    nn.functional.cross_entropy(model(INPUTS), TARGETS).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    expected = before - 0.5 * torch.linalg.solve(gauss_newton(model) + 0.07 * torch.eye(15), gradient)
    shown = curvature(model)
    optimizer.observe(shown)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(after, expected.float(), rtol=1e-4, atol=1e-5)
    rows = 5 * 3
    assert shown.flops == 100 + rows * 200 + 2 * rows * 15 * (rows + 2)


def test_drawn_labels_have_that_matrix_for_their_mean() -> None:
    model, total = head(), torch.zeros(15, 15)
    for seed in range(800):
        rows = torch.cat([row.flatten(1) for row in curvature(model, seed).factors(list(model.parameters()), 2)], 1)
        assert rows.shape == (2, 15)
        total += rows.T @ rows
    torch.testing.assert_close(total / 800, gauss_newton(model).float(), atol=0.06, rtol=0.15)


def test_what_it_needs_is_said() -> None:
    model = head()
    optimizer = EGN(model.parameters())
    nn.functional.cross_entropy(model(INPUTS), TARGETS).backward()
    with pytest.raises(ValueError, match=r"egn was shown no curvature: call observe\(\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="draw labels instead"):
        LogitsCurvature(lambda: model(INPUTS.repeat(800, 1)), torch.zeros(4800, dtype=torch.int64), seed=0).factors(
            list(model.parameters()), 0
        )
