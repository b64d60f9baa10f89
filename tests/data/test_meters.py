"""Meters: their figures by hand, and that looking changes nothing."""

import pytest
import torch

from shoestring.contract.batch import Batch, Inputs
from shoestring.data.meters.zero_sum import ZeroSum, deceleration, destructive_interference
from shoestring.data.selection import projection_gradients, row_losses
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], 0.0),
        ([1.0, -1.0], 1.0),
        ([3.0, -1.0], 0.5),
        ([0.0, 0.0], 0.0),
        ([[1.0, 2.0], [1.0, -2.0]], 2 / 3),
    ],
)
def test_interference_is_the_share_that_cancels(values: list[float], expected: float) -> None:
    assert destructive_interference(torch.tensor(values)) == pytest.approx(expected)


def test_looks_tell_what_a_step_did_to_each_row() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocabulary=20, layers=1, width=16, heads=2, context=8))
    values = torch.randint(20, (6, 8))
    batch = Batch(Inputs(values), values.roll(-1, dims=1))
    meter = ZeroSum(batch.split(4))
    first = meter.look(model)
    assert first.interference is None
    assert first.spent.flops > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    before, _ = row_losses(model, [batch])
    gradients, _ = projection_gradients(model, [batch])
    by_hand = 1 - sum(abs(sum(column)) for column in gradients.T.tolist()) / sum(map(abs, gradients.flatten().tolist()))
    assert first.opposition == pytest.approx(by_hand, abs=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    second = meter.look(model)
    changes = (row_losses(model, [batch])[0] - before).tolist()
    assert second.interference == pytest.approx(1 - abs(sum(changes)) / sum(map(abs, changes)), abs=1e-4)
    assert second.loss == pytest.approx(first.loss + sum(changes) / 6, abs=1e-5)


def test_a_bend_in_a_curve_is_found_and_a_straight_one_has_none() -> None:
    tokens = [float(2**step) for step in range(4, 20)]
    bent = [3.0 * (t / 1024) ** (-0.4 if t <= 1024 else -0.05) for t in tokens]
    assert deceleration(tokens, bent) == pytest.approx((3.0, 1024.0, 0.05), rel=1e-6)
    assert deceleration(tokens, [5.0 * t ** (-0.1 if t <= 1024 else -0.3) for t in tokens]) is None
    assert deceleration(tokens, [5.0 * t**-0.1 for t in tokens]) is None
    assert deceleration(tokens[:5], bent[:5]) is None
