import math

import numpy as np
import pytest

from shoestring.errors import UsageError
from shoestring.plan.allocation import beyond_chinchilla, compute_optimal
from shoestring.plan.laws.chinchilla import Chinchilla

LAW = dict(Chinchilla.published["besiroglu"])


def loss(size: float, tokens: float) -> float:
    return LAW["E"] + LAW["A"] / size ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]


@pytest.mark.parametrize("compute", [1e18, 1e21, 5.76e23])
def test_no_other_size_has_a_lower_loss_at_this_compute(compute: float) -> None:
    best = compute_optimal(LAW, compute)
    assert 6 * best.parameters * best.tokens == pytest.approx(compute)
    others = [loss(n, compute / 6 / n) for n in best.parameters * np.geomspace(0.5, 2, 41)]
    assert best.loss == pytest.approx(min(others), rel=1e-9)
    assert 10 < compute_optimal(LAW, 5.76e23).tokens / compute_optimal(LAW, 5.76e23).parameters < 30


@pytest.mark.parametrize("served", [0.0, 1e11, 1e13])
def test_no_other_size_costs_less_at_this_loss(served: float) -> None:
    best = beyond_chinchilla(LAW, 2.2, served=served)
    assert loss(best.parameters, best.tokens) == pytest.approx(2.2)
    for size in best.parameters * np.geomspace(0.5, 2, 40):
        left = 2.2 - LAW["E"] - LAW["A"] * size ** -LAW["alpha"]
        if left > 0:
            tokens = (LAW["B"] / left) ** (1 / LAW["beta"])
            assert 6 * size * tokens + 2 * size * served >= (best.training + best.serving) * (1 - 1e-9)


def test_what_is_served_makes_models_smaller_and_training_longer() -> None:
    found = [beyond_chinchilla(LAW, 2.2, served=served) for served in (0.0, 1e11, 1e12, 1e13)]
    assert [one.parameters for one in found] == sorted((one.parameters for one in found), reverse=True)
    assert [one.tokens for one in found] == sorted(one.tokens for one in found)
    plain = compute_optimal(LAW, found[0].training)
    assert found[0].parameters == pytest.approx(plain.parameters, rel=1e-4)
    assert plain.loss == pytest.approx(2.2, rel=1e-6)


def test_what_no_model_reaches_is_refused() -> None:
    with pytest.raises(UsageError, match="out of reach"):
        beyond_chinchilla(LAW, LAW["E"] - 0.01)
    with pytest.raises(UsageError, match="alpha is missing"):
        compute_optimal({"E": 1.0, "A": 1.0, "B": 1.0}, 1e18)
    assert math.isfinite(beyond_chinchilla(LAW, LAW["E"] + 1e-3).parameters)
