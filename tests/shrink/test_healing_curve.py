"""What healing will come to is told after a small part of it, and the interval holds as often as it says."""

import math

import numpy as np
import pytest
import torch

from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.plan.curve import extrapolate
from shoestring.plan.outlook import LAWS
from shoestring.plan.runs_table import RunsTable
from shoestring.shrink.healing import foretold, healed
from shoestring.shrink.worth import from_scratch, operations, price


def curve(seed: int, steps: int = 600, noise: float = 0.03, first: float = 0.1) -> list[dict[str, object]]:
    """Lines of metrics of a run whose first step comes when a tenth of its budget is gone."""
    drawn = np.random.default_rng(seed)
    low, high = drawn.uniform(1, 4), drawn.uniform(0.3, 4)
    exponent, place = math.exp(drawn.normal(math.log(0.5), 0.6)), 10 ** drawn.uniform(-3.5, -0.5)
    lines: list[dict[str, object]] = []
    for step in range(steps + 1):
        share = step / steps
        loss = low + high * (1 + share / place) ** -exponent + noise * drawn.standard_normal()
        lines.append({"kind": "train", "progress": first + (1 - first) * share, "loss": loss})
    return lines


def test_the_end_lies_in_the_interval_as_often_as_it_says() -> None:
    held = []
    for seed in range(14):
        found = healed(curve(seed))
        assert found.expected is not None
        assert found.came_to is not None
        assert found.points in (30, 31)
        held.append(found.expected.low <= found.came_to <= found.expected.high)
    assert 0.7 <= sum(held) / len(held) <= 1.0


def test_only_the_first_part_tells_the_end() -> None:
    lines = curve(3)
    early = healed([line for line in lines if float(line["progress"]) <= 0.1 + 0.9 * 0.05 + 1e-9])  # type: ignore[arg-type]
    whole = healed(lines)
    assert early.expected == whole.expected
    assert early.came_to is None
    assert str(whole).startswith(str(early))
    assert "it came to" in str(whole)


def test_a_short_healing_is_predicted_once_there_are_losses_enough() -> None:
    lines = curve(1, steps=40)
    found = healed(lines)
    assert found.expected is not None
    assert (found.points, found.seen) == (8, pytest.approx(7 / 40))
    assert str(found).startswith("from its first 18%, ")
    assert healed(lines[:8]).expected == found.expected
    assert [foretold(lines[:count]) for count in (1, 7, 8, 9)] == [False, False, True, True]
    long_ = curve(1)
    assert [foretold(long_[:count]) for count in (8, 25, 31)] == [False, False, True]


def test_too_few_losses_are_said_and_not_guessed_from() -> None:
    lines = curve(1, steps=10)
    found = healed(lines)
    assert found.expected is None
    assert " losses in the first 50% are too few to predict its end" in str(found)
    assert [foretold(lines[:count]) for count in (4, 7)] == [False, True]
    assert healed([]).came_to is None


def test_more_noise_and_a_nearer_end_make_wider_and_narrower_intervals() -> None:
    shares = np.linspace(0.001, 0.05, 20)
    drawn = np.random.default_rng(0).standard_normal(20)
    losses = 2 + 1 / (1 + shares / 0.01) ** 0.5
    quiet, loud = (extrapolate(shares, losses + noise * drawn, 0.975) for noise in (0.005, 0.05))
    near = extrapolate(shares, losses + 0.05 * drawn, 0.06)
    assert quiet.high - quiet.low < loud.high - loud.low
    assert near.high - near.low < loud.high - loud.low
    rising = extrapolate(shares, 2 + 10 * shares, 0.9)
    assert rising.low < rising.value < rising.high
    with pytest.raises(UsageError, match="too few"):
        extrapolate(shares[:5], losses[:5], 0.9)


SUMMARY = {
    "seconds": 60.0,
    "flops": 10**12,
    "accounts": {"teacher": {"flops": 10**12}, "calibration": {"flops": 10**11}, "evaluation": {"flops": 10**15}},
}


def test_from_scratch_is_for_all_operations_by_the_runs_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.plan.outlook.LAWS", LAWS[:1])
    model = Transformer(ModelConfig(layers=2, width=32, heads=2, vocabulary=300, context=32))
    count = sum(p.numel() for p in model.parameters())
    assert operations(SUMMARY) == 2.1e12
    assert "48% of them the teacher's" in price(SUMMARY)
    guess = from_scratch(model.requires_grad_(False), operations(SUMMARY), None)
    assert not any(p.requires_grad for p in model.parameters())
    each = 6 * (count - 5 * 32 - 2 * 2 * 16) + 7 * 2 * 2 * 32 * 32 * 1.0  # products and attention, full square
    assert guess.tokens == pytest.approx(2.1e12 / each, rel=0.1)
    assert guess.expected.value == pytest.approx(math.log(300))
    assert "learnt nothing" in str(guess)
    large = Transformer(ModelConfig(layers=1, width=32, heads=2, vocabulary=50_000, context=32))
    size = sum(p.numel() for p in large.parameters())
    guess = from_scratch(large, 1e16, None)
    wanted = 1.8172 + 482.01 / size**0.3478 + 2085.43 / guess.tokens**0.3658
    assert guess.expected.value == pytest.approx(wanted)
    assert "a rough guide" in str(guess)
    rows = [
        {"parameters": n, "tokens": d, "loss": 1.0 + 40 / n**0.3 + 60 / d**0.3}
        for n in (1e4, 4e4, 16e4)
        for d in (1e5, 1e6, 1e7)
    ]
    known = from_scratch(model, operations(SUMMARY), RunsTable.of(rows))
    assert known.expected.value == pytest.approx(1 + 40 / count**0.3 + 60 / known.tokens**0.3, rel=0.02)
    assert "fitted to 9 runs" in str(known)
    assert from_scratch(large, 1e16, RunsTable.of(rows[:3])).source == guess.source
    assert torch.isfinite(torch.tensor(known.expected.low))
