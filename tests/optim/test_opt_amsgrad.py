from typing import Any

import pytest
import torch
from reference_opt_amsgrad import opt_amsgrad
from reference_run import assert_agrees, run, weights_and_gradients
from torch import nn

from shoestring.optim.opt_amsgrad import OptAMSGrad, extrapolate

OPTIONS = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-4, "regularization": 1e-2}


@pytest.mark.parametrize(("prediction", "span"), [("last", 2), ("extrapolation", 2), ("extrapolation", 4)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_agrees_with_the_reference_over_several_steps(prediction: str, span: int, weight_decay: float) -> None:
    options: dict[str, Any] = {**OPTIONS, "prediction": prediction, "span": span, "weight_decay": weight_decay}
    assert_agrees(OptAMSGrad, opt_amsgrad, lr=0.02, **options)


def test_the_denominator_never_falls() -> None:
    weights, gradients = weights_and_gradients(torch.float32)
    parameters = [nn.Parameter(weight) for weight in weights]
    optimizer = OptAMSGrad(parameters)
    run(optimizer, gradients[:1])
    first = [optimizer.state[parameter]["peak"].clone() for parameter in parameters]
    run(optimizer, [[gradient * 0.01 for gradient in gradients[1]]] * 6)
    for parameter, peak in zip(parameters, first, strict=True):
        assert (optimizer.state[parameter]["peak"] >= peak).all()
        assert (optimizer.state[parameter]["variance"] <= optimizer.state[parameter]["peak"]).all()


def test_extrapolation_finds_where_a_converging_sequence_goes() -> None:
    """x_k = x* + A^k d has a minimal polynomial of the degree of A, 2 here: four points are enough."""
    goal, decays = torch.tensor([3.0, -2.0], dtype=torch.float64), torch.tensor([0.9, 0.5], dtype=torch.float64)
    sequence = torch.stack([goal + decays**k * torch.tensor([5.0, 7.0]) for k in range(4)])
    assert (sequence[-1] - goal).norm() > 3
    assert (extrapolate(sequence, 1e-12) - goal).norm() < 0.01


def test_extrapolation_of_one_gradient_again_and_again_is_that_gradient() -> None:
    gradient = torch.randn(3, 4)
    torch.testing.assert_close(extrapolate(gradient.expand(5, 3, 4), 1e-3), gradient)
    assert torch.equal(extrapolate(torch.zeros(5, 3), 1e-3), torch.zeros(3))


def test_weights_set_from_outside_stay_set() -> None:
    """What is kept is a displacement: a weight that was averaged with others goes on from where it was put."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = OptAMSGrad([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.ones(2)
    optimizer.step()
    twin = weight.detach().clone()
    with torch.no_grad():
        weight.add_(100)
    optimizer.step()
    assert (weight - 100 - twin).abs().max() < 1.0


def test_the_history_is_bounded_and_float32() -> None:
    weights, gradients = weights_and_gradients(torch.bfloat16)
    parameters = [nn.Parameter(weight) for weight in weights]
    optimizer = OptAMSGrad(parameters, prediction="extrapolation", span=3)
    run(optimizer, gradients)
    for parameter in parameters:
        assert optimizer.state[parameter]["history"].shape == (3, *parameter.shape)
        assert optimizer.state[parameter]["history"].dtype == torch.float32
        assert optimizer.state[parameter]["step"] == len(gradients)


def test_the_history_resumes_in_the_middle_of_its_ring() -> None:
    weights, gradients = weights_and_gradients(torch.float32)
    whole, halves = ([nn.Parameter(weight.clone()) for weight in weights] for _ in range(2))
    run(OptAMSGrad(whole, prediction="extrapolation", span=3), gradients[:5])
    first, second = (OptAMSGrad(halves, prediction="extrapolation", span=3) for _ in range(2))
    run(first, gradients[:2])
    second.load_state_dict(first.state_dict())
    for group in (*first.param_groups, *second.param_groups):
        group["lr"] = 3e-3
    for factor, step in zip((0.7, 0.5, 0.2), gradients[2:5], strict=True):
        for parameter, gradient in zip(halves, step, strict=True):
            parameter.grad = gradient.clone()
        second.param_groups[0]["lr"] = 3e-3 * factor
        second.step()
    assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))


def test_a_span_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="opt_amsgrad: span = 1"):
        OptAMSGrad([nn.Parameter(torch.ones(1))], span=1)
