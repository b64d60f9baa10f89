"""Direct feedback alignment beside its formula, layer by layer."""

import functools
from typing import Any

import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.model.span import InnerLayers, Where

WIDTH = 6
NOWHERE = Where((), None, None)


def test_layers_learn_from_the_error_at_the_top_by_a_fixed_matrix() -> None:
    span = Choice.of("model", "feedback_alignment", kind="span", seed=3).build(WIDTH).double()
    weights = [torch.randn(WIDTH, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, requires_grad=True)

    def layer(weight: Tensor, x: Tensor) -> Tensor:
        return x + (x @ weight).tanh()

    each: tuple[Any, ...] = tuple(lambda x, where, caches, weight=weight: (layer(weight, x), {}) for weight in weights)
    inner = InnerLayers(lambda x, *_: (functools.reduce(lambda x, w: layer(w, x), weights, x), {}), each, (), ())
    wanted = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    found, _ = span(inner, x, NOWHERE, [None] * 3)
    with torch.no_grad():
        torch.testing.assert_close(found, span(inner, x, NOWHERE, [None] * 3)[0])
    gradients = torch.autograd.grad((found - wanted).square().sum() / 2, [*weights, x])
    states = [x.detach()]
    for weight in weights:
        states.append(layer(weight.detach(), states[-1]))
    error = states[-1] - wanted
    for number, (weight, gradient) in enumerate(zip(weights, gradients[:3], strict=True)):
        told = error if number == 2 else error @ span.feedback
        slope = told * (1 - (states[number] @ weight.detach()).tanh() ** 2)
        torch.testing.assert_close(gradient, (states[number].mT @ slope).sum(0))
        if number == 0:
            torch.testing.assert_close(gradients[3], told + slope @ weight.detach().T)
