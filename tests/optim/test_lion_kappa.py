import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_lion_kappa import kappa_of, lion_kappa, subgradient_of
from reference_run import assert_agrees, run, weights_and_gradients
from torch import nn

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.optim.kappa import gauge, subgradient
from shoestring.optim.lion import Lion
from shoestring.optim.lion_kappa import LionKappa

CASES: list[dict[str, Any]] = [
    {"name": "l1"},
    {"name": "lp", "p": 2.0},
    {"name": "lp", "p": 1.5, "scaled": False},
    {"name": "lp", "p": 8.0},
    {"name": "linf"},
    {"name": "linf", "scaled": False},
    {"name": "threshold", "width": 0.1},
    {"name": "top", "share": 0.3},
    {"name": "huber", "width": 0.3},
    {"name": "relativistic", "width": 0.2},
]
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
NORMS = [case for case in CASES if case["name"] in ("l1", "lp", "linf", "top")]


def complete(case: dict) -> dict:
    """The options of `subgradient`."""
    return {"p": 2.0, "width": 0.1, "share": 0.1, "scaled": True, **case}


def for_gauge(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "width"}


@EVERY
def test_agrees_with_the_reference_over_several_steps(case: dict) -> None:
    options = complete(case)
    options["kappa"] = options.pop("name")
    assert_agrees(LionKappa, lion_kappa, lr=0.03, beta1=0.8, beta2=0.95, weight_decay=0.4, **options)


def test_l1_is_lion_to_the_bit() -> None:
    weights, gradients = weights_and_gradients(torch.float32)
    twins = [[nn.Parameter(weight.clone()) for weight in weights] for _ in range(2)]
    run(Lion(twins[0]), gradients)
    run(LionKappa(twins[1]), gradients)
    assert all(torch.equal(one, other) for one, other in zip(*twins, strict=True))


@EVERY
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 6), size=st.integers(1, 12))
def test_the_subgradient_is_the_derivative_at_any_scale(case: dict, seed: int, exponent: int, size: int) -> None:
    options = complete(case)
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    found = subgradient(x, **options)
    assert found.shape == x.shape
    assert found.isfinite().all()
    assert gauge(found, **for_gauge(options)) <= 1 + 1e-5
    if abs(exponent) < 4:  # float64 sees the same bends as float32, away from the edges of its range
        torch.testing.assert_close(found.double(), subgradient_of(x, **options), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", NORMS, ids=lambda case: "-".join(map(str, case.values())))
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_gauge_is_the_dual_norm(case: dict, seed: int) -> None:
    """<x, y> <= kappa(x) gauge(y), with equality where y is a subgradient at x."""
    options = complete(case)
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y = y.abs() * x.sign()  # where the inequality is tightest
    size = kappa_of(x, **options)
    assert (x * y).sum() <= size * gauge(y, **for_gauge(options)) * (1 + 1e-9)
    assert (x * subgradient(x, **options)).sum() == pytest.approx(size.item(), rel=1e-9)


@EVERY
def test_nothing_moves_without_a_gradient(case: dict) -> None:
    assert torch.equal(subgradient(torch.zeros(4, 3), **complete(case)), torch.zeros(4, 3))


@EVERY
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.floats(0.01, 100), weight_decay=st.floats(0.1, 5), lr=st.floats(0.01, 0.19))
def test_the_excess_shrinks_at_the_promised_pace(
    case: dict, seed: int, size: float, weight_decay: float, lr: float
) -> None:
    """Outside by a factor of 1 - lr weight_decay a step, whatever the gradients; inside they stay."""
    options = complete(case)
    options["kappa"] = options.pop("name")
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(4, 6, generator=generator) * size)
    optimizer = LionKappa([("w", weight)], lr=lr, weight_decay=weight_decay, **options)
    (before,) = optimizer.bound_report()
    for _ in range(8):
        weight.grad = torch.randn(4, 6, generator=generator)
        optimizer.step()
        (after,) = optimizer.bound_report()
        assert after.excess <= before.excess * (1 - lr * weight_decay) + 1e-4 * after.limit + 1e-5 * before.gauge
        before = after


def test_the_report_names_and_counts_what_is_outside() -> None:
    named = [
        ("inner", nn.Parameter(torch.tensor([1.9, -1.0]))),
        ("outer", nn.Parameter(torch.tensor([[2.5, -3.0, 0.5]]))),
    ]
    free = nn.Parameter(torch.full((3,), 50.0, dtype=torch.bfloat16))
    optimizer = LionKappa([{"params": named}, {"params": [("free", free)], "weight_decay": 0.0}], weight_decay=0.5)
    inner, outer, unbound = optimizer.bound_report()
    assert (inner.parameter, inner.group, inner.limit, inner.outside, inner.inside) == ("inner", 0, 2.0, 0, True)
    assert inner.gauge == pytest.approx(1.9)
    assert inner.excess == 0
    assert (outer.parameter, outer.weights, outer.outside, outer.inside) == ("outer", 3, 2, False)
    assert outer.excess == pytest.approx(1.0)
    assert (unbound.group, unbound.limit, unbound.outside, unbound.inside) == (1, math.inf, 0, True)


def test_a_norm_counts_a_tensor_as_a_whole() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    (report,) = LionKappa([weight], weight_decay=0.25, kappa="lp", scaled=False).bound_report()
    assert (report.parameter, report.gauge, report.limit, report.outside) == ("0", 5.0, 4.0, 2)
    (report,) = LionKappa([weight], weight_decay=0.25, kappa="lp", scaled=True).bound_report()
    assert report.gauge == pytest.approx(5 / 2**0.5)
    assert report.outside == 0


def test_an_impossible_kappa_is_refused() -> None:
    weight = [nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match=r"lion_kappa: p = 0\.5"):
        LionKappa(weight, kappa="lp", p=0.5)
    with pytest.raises(ValueError, match=r"lion_kappa: share = 0"):
        LionKappa(weight, kappa="top", share=0)
    with pytest.raises(UsageError, match="kappa = 'l3'"):
        Choice.of("optim", "lion_kappa", kappa="l3")
