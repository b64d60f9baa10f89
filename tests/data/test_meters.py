"""Meters: their figures by hand, and that looking changes nothing."""

import math
import statistics
from typing import Any

import pytest
import torch

from shoestring.budget.charge import NOTHING
from shoestring.contract.batch import Batch, Inputs
from shoestring.data.meters.attention_heads import AttentionMeter, AttentionReading, GrokkingAlarm
from shoestring.data.meters.zero_sum import ZeroSum, deceleration, destructive_interference
from shoestring.data.selection import projection_gradients, row_losses
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.model.rotary import rotate
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


def _heads(model: Transformer, batch: Batch) -> list[list[list[list[list[float]]]]]:
    """Attention by layer, row, head, query and key, of float64 by hand."""
    found = []

    def keep(layer: Any, given: tuple[torch.Tensor, ...]) -> None:
        x, cos, sin = (value.detach().double() for value in given[:3])
        q, k, _ = layer.qkv(x).unflatten(-1, (-1, layer.head_width)).split(layer.split, dim=2)
        q, k = rotate(layer.query_norm(q), cos, sin), rotate(layer.key_norm(k), cos, sin)
        k = k.repeat_interleave(layer.split[0] // layer.split[1], 2)
        rows = []
        for row in range(x.shape[0]):
            heads = []
            for head in range(layer.split[0]):
                table = []
                for t in range(x.shape[1]):
                    scores = [float(q[row, t, head] @ k[row, s, head]) / layer.head_width**0.5 for s in range(t + 1)]
                    total = sum(math.exp(score) for score in scores)
                    table.append([math.exp(score) / total for score in scores] + [0.0] * (x.shape[1] - t - 1))
                heads.append(table)
            rows.append(heads)
        found.append(rows)

    blocks: list[Any] = list(model.blocks)
    hooks = [block.token_mixer.register_forward_pre_hook(keep) for block in blocks]
    with torch.no_grad():
        model.read(batch.inputs)
    for hook in hooks:
        hook.remove()
    return found


def test_heads_are_compared_as_by_hand() -> None:
    torch.manual_seed(0)
    sizes = ModelConfig(vocabulary=20, layers=2, width=16, heads=4, key_value_heads=2, context=6)
    model = Transformer(sizes).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    values = torch.randint(20, (3, 6))
    batch = Batch(Inputs(values), values.roll(-1, dims=1))
    meter = AttentionMeter(batch.split(2))
    reading = meter.look(model)
    cosines, entropies = [], []
    for layer in _heads(model, batch):
        for row in layer:
            flat = [[share for line in head for share in line] for head in row]
            norms = [math.hypot(*head) for head in flat]
            cosines += [
                sum(a * b for a, b in zip(flat[i], flat[j], strict=True)) / norms[i] / norms[j]
                for i in range(4)
                for j in range(i)
            ]
        for head in range(4):
            lines = [line for row in layer for line in row[head][1:]]
            entropies.append(-sum(p * math.log(p) for line in lines for p in line if p) / len(lines))
    assert reading.similarity == pytest.approx(sum(cosines) / len(cosines), rel=1e-5)
    assert reading.deviation == pytest.approx(statistics.pstdev(entropies), rel=1e-5)
    assert reading.loss == pytest.approx(float(row_losses(model, [batch])[0].mean()))
    assert reading.spent == row_losses(model, batch.split(2))[1]
    single = Transformer(ModelConfig(vocabulary=20, layers=1, width=8, heads=1, context=6))
    with pytest.raises(UsageError, match="no attention of several heads"):
        meter.look(single)


def test_regimes_of_a_run() -> None:
    alarm = GrokkingAlarm()
    apart, alike = AttentionReading(0, 0.5, 0.3, NOTHING), AttentionReading(0, 1.0, 0.0, NOTHING)
    train, heldout = [2.0, 0.05, 0.01, 0.01, 0.01], [2.0, 3.0, 4.0, 2.0, 0.2]
    found = [alarm.regime(train[:n], heldout[:n], apart) for n in range(1, 6)]
    assert found == ["learning", "memorising", "memorising", "grokking", "general"]
    assert alarm.regime(train, heldout, alike) == "collapse"
    with pytest.raises(UsageError, match="one of each a look"):
        alarm.regime([1.0], [], apart)
