from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sophia import sophia
from torch import Tensor, nn

from shoestring.optim.curvature import LogitsCurvature
from shoestring.optim.sophia import Sophia

SHAPES = [(6, 4), (5,), (2, 3, 4)]


class Given:
    """A curvature that says what it is told to."""

    def __init__(self, answers: list[Tensor], targets: int = 1) -> None:
        self.answers, self.targets, self.flops = answers, targets, 0
        self.vectors: list[Tensor] = []

    def sampled_gradients(self, parameters: Sequence[Tensor]) -> tuple[list[Tensor], int]:
        return self.answers, self.targets

    def hessian_vector_products(self, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        self.vectors = list(vectors)
        return [answer * vector for answer, vector in zip(self.answers, vectors, strict=True)]

    def factors(self, parameters: Sequence[Tensor], rows: int) -> list[Tensor]:
        raise AssertionError("Sophia asks for none")


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def random(steps: int, seed: int) -> list[list[Tensor]]:
    torch.manual_seed(seed)
    return [[torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


def step(optimizer: Sophia, moved: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(moved, gradients, strict=True):
        parameter.grad = gradient.to(parameter.dtype)
    optimizer.step()


@settings(max_examples=20, deadline=None)
@given(
    st.floats(0.001, 10.0),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(["gnb", "hutchinson"]),
)
def test_agrees_with_the_reference(
    gamma: float, interval: int, correct_bias: bool, weight_decay: float, estimator: Any
) -> None:
    options: dict[str, Any] = {
        "lr": 0.05,
        "beta1": 0.9,
        "beta2": 0.7,
        "gamma": gamma,
        "epsilon": 1e-12,
        "weight_decay": weight_decay,
    }
    options["correct_bias"] = correct_bias
    moved, gradients, answers = parameters(), random(6, 1), random(6, 2)
    before = [parameter.detach().double().flatten().tolist() for parameter in moved]
    optimizer = Sophia(moved, estimator=estimator, interval=interval, **options)
    estimates: list[dict[int, list[float]]] = [{} for _ in moved]
    for number, gradient in enumerate(gradients, start=1):
        assert optimizer.wants_curvature() == ((number - 1) % interval == 0)
        if optimizer.wants_curvature():
            curvature = Given(answers[number - 1], targets=7)
            optimizer.observe(curvature)
            for index, answer in enumerate(answers[number - 1]):
                if estimator == "gnb":
                    expected = 7 * answer.double() ** 2
                else:
                    expected = answer.double() * curvature.vectors[index].double() ** 2
                estimates[index][number] = expected.flatten().tolist()
        step(optimizer, moved, gradient)
    for index, parameter in enumerate(moved):
        own = [gradient[index].double().flatten().tolist() for gradient in gradients]
        expected = torch.tensor(sophia(before[index], own, estimates[index], **options))
        torch.testing.assert_close(parameter.detach().flatten(), expected.float(), rtol=1e-4, atol=1e-5)


def test_hutchinson_finds_the_diagonal_on_average() -> None:
    """u * (H u) for a quadratic whose Hessian is not diagonal."""
    torch.manual_seed(3)
    root = torch.randn(4, 4)
    hessian = root @ root.T
    weight = nn.Parameter(torch.zeros(4))

    class Quadratic(Given):
        def hessian_vector_products(self, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
            return [hessian @ vectors[0]]

    optimizer = Sophia([weight], estimator="hutchinson", beta2=0.999, correct_bias=True)
    for _ in range(4000):
        optimizer.observe(Quadratic([]))
    found = optimizer.state[weight]["hessian"] / (1 - 0.999**4000)
    torch.testing.assert_close(found, hessian.diagonal(), rtol=0.3, atol=0.3)


def test_a_step_without_any_curvature_is_refused() -> None:
    moved = parameters()
    optimizer = Sophia(moved)
    with pytest.raises(ValueError, match=r"^sophia was shown no curvature: call observe\(\)"):
        step(optimizer, moved, random(1, 1)[0])
    assert all(torch.equal(one, other) for one, other in zip(moved, parameters(), strict=True))
    optimizer.update_hessian(random(1, 2)[0])
    step(optimizer, moved, random(1, 1)[0])
    with pytest.raises(ValueError, match="3 parameters and was given 1 estimates"):
        optimizer.update_hessian([torch.ones(6, 4)])


def test_no_coordinate_moves_further_than_lr_and_negative_curvature_moves_by_the_sign() -> None:
    moved, gradient = parameters(), random(1, 1)[0]
    optimizer = Sophia(moved, lr=0.5, weight_decay=0)
    optimizer.update_hessian([-torch.ones(shape) for shape in SHAPES])
    step(optimizer, moved, gradient)
    for parameter, start, g in zip(moved, parameters(), gradient, strict=True):
        torch.testing.assert_close(parameter - start, -0.5 * g.sign())
    assert optimizer.unclipped() == 0


def test_unclipped_is_the_share_of_coordinates_inside() -> None:
    weight = nn.Parameter(torch.zeros(4))
    optimizer = Sophia([weight], beta1=0.0, beta2=0.0, gamma=1.0)
    with pytest.raises(ValueError, match="no step"):
        optimizer.unclipped()
    optimizer.update_hessian([torch.ones(4)])
    weight.grad = torch.tensor([0.5, -0.5, 2.0, -0.9])
    optimizer.step()
    assert optimizer.unclipped() == 0.75


@pytest.mark.parametrize("estimator", ["gnb", "hutchinson"])
def test_observing_leaves_gradients_and_weights_alone_and_draws_from_its_own_seed(estimator: Any) -> None:
    torch.manual_seed(5)
    model, inputs, targets = nn.Linear(4, 3), torch.randn(6, 4), torch.randint(3, (6,))
    start = [parameter.detach().clone() for parameter in model.parameters()]
    nn.functional.cross_entropy(model(inputs), targets).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]

    def observed(seed: int, times: int = 1) -> Sophia:
        optimizer = Sophia(model.parameters(), estimator=estimator, seed=seed)
        for number in range(times):
            optimizer.observe(LogitsCurvature(lambda: model(inputs), targets, seed=100 * seed + number))
        return optimizer

    torch.manual_seed(0)
    first, again = observed(1, 2), observed(1, 2)
    for index, parameter in enumerate(model.parameters()):
        assert torch.equal(parameter.grad, gradients[index])  # type: ignore[arg-type]
        assert torch.equal(parameter, start[index])
        assert torch.equal(first.state[parameter]["hessian"], again.state[parameter]["hessian"])
    other = observed(2, 2)
    assert not torch.equal(*(each.state[model.weight]["hessian"] for each in (first, other)))


def test_the_state_is_float32_under_bfloat16_weights_and_the_step_compiles() -> None:
    moved, twins = parameters(torch.bfloat16), parameters(torch.bfloat16)
    plain, compiled = Sophia(moved, lr=0.1), Sophia(twins, lr=0.1)
    compiled.step = torch.compile(compiled.step, backend="eager")  # type: ignore[method-assign]
    for number, gradient in enumerate(random(3, 1)):
        for optimizer in (plain, compiled):
            if number == 0:
                optimizer.update_hessian([torch.full(shape, 30.0) for shape in SHAPES])
        step(plain, moved, gradient)
        step(compiled, twins, gradient)
    for one, other in zip(moved, twins, strict=True):
        assert torch.equal(one, other)
        assert plain.state[one]["momentum"].dtype == plain.state[one]["hessian"].dtype == torch.float32
