"""The rules for another batch size: the identities that each is made to keep, and that a run takes them."""

import math
from dataclasses import astuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shoestring.config import Choice, build
from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.method import Card, methods
from shoestring.schedule.batch_rule.constant_half_life import ConstantHalfLife
from shoestring.schedule.batch_rule.linear import LinearBatchRule
from shoestring.schedule.batch_rule.rule import BatchSettings, require_optimizer, scale_to_batch
from shoestring.schedule.batch_rule.square_root import SquareRootBatchRule
from shoestring.train.assembly import _stepper
from shoestring.train.config import RunConfig

BATCHES = st.floats(1, 1e4)
BETAS = st.floats(0.5, 0.99999)
SETTINGS = BatchSettings(lr=3e-3, beta1=0.9, beta2=0.95, epsilon=1e-8)
RULES = pytest.mark.parametrize(
    "card", [card for card in methods("schedule") if card.kind == "batch rule"], ids=lambda card: card.name
)


def made(card: Card, reference: int = 16) -> Any:
    given = {"reference": reference} if "reference" in card.options().model_fields else {}
    return Choice.of("schedule", card.name, kind="batch rule", **given).build()


def half_life(beta: float, batch: float) -> float:
    """The tokens after which a running average that decays by `beta` a step of `batch` tokens has halved an old value."""
    return batch * math.log(2) / -math.log(beta)


@RULES
def test_at_the_reference_nothing_changes(card: Card) -> None:
    assert astuple(made(card)(SETTINGS, 16)) == pytest.approx(astuple(SETTINGS))


@RULES
def test_there_and_back(card: Card) -> None:
    there = made(card, 16)(SETTINGS, 24)
    assert astuple(made(card, 24)(there, 16)) == pytest.approx(astuple(SETTINGS))


@RULES
def test_it_says_where_it_is_from_and_refuses_what_it_is_not_for(card: Card) -> None:
    assert card.claim
    assert card.cost
    known = {each.name for each in methods("optim")}
    assert made(card).optimizers <= known
    if made(card).optimizers:
        with pytest.raises(UsageError, match=f"batch_rule = {card.name} is for .*optim = lion"):
            require_optimizer(made(card), card.name, "lion")
        with pytest.raises(ValueError, match="reference = 0"):
            card.target(reference=0)
        for batch in (0, -1, math.nan, math.inf):
            with pytest.raises(UsageError, match="batch sizes are above zero"):
                made(card)(SETTINGS, batch)


@given(st.integers(1, 64), st.floats(1e-4, 1))
def test_linear_goes_as_far_in_one_step_as_in_k(k: int, lr: float) -> None:
    gradient, weight = 0.7, 2.0
    for _ in range(k):
        weight -= lr * gradient
    assert 2.0 - LinearBatchRule(reference=8)(BatchSettings(lr), k * 8).lr * gradient == pytest.approx(weight)


def test_square_root_by_hand() -> None:
    assert astuple(SquareRootBatchRule(reference=16)(SETTINGS, 64)) == pytest.approx((6e-3, 0.6, 0.8, 5e-9))


@given(st.floats(0.01, 4))
def test_square_root_keeps_the_noise_of_a_token(kappa: float) -> None:
    found = SquareRootBatchRule(reference=1)(SETTINGS, kappa)
    assert found.beta2 is not None
    assert found.epsilon is not None
    assert found.lr * found.epsilon == pytest.approx(SETTINGS.lr * 1e-8)
    assert (1 - found.beta2) / found.lr**2 == pytest.approx((1 - 0.95) / SETTINGS.lr**2)


@given(BETAS, BATCHES, st.integers(1, 512))
def test_constant_half_life_is_constant_whatever_the_batch(beta: float, batch: float, reference: int) -> None:
    found = ConstantHalfLife(reference=reference)(BatchSettings(0.1, 0.9, beta), batch)
    assert found.lr == 0.1
    assert found.beta1 == 0.9
    if found.beta2:  # not rounded to zero
        assert half_life(found.beta2, batch) == pytest.approx(half_life(beta, reference))


def test_constant_half_life_by_hand() -> None:
    # 0.95 a step of 512 sequences is 0.9999 a step of one
    found = ConstantHalfLife(reference=512, lr_exponent=0.5)(SETTINGS, 1)
    assert found.beta2 == pytest.approx(0.9999, abs=1e-6)
    assert found.lr == pytest.approx(3e-3 / 512**0.5)


def test_both_rules_for_beta2_agree_to_first_order() -> None:
    for small in (1e-3, 1e-4):
        settings = BatchSettings(1.0, 0.9, 1 - small, 1.0)
        exact = ConstantHalfLife(reference=1)(settings, 4).beta2
        assert exact == pytest.approx(SquareRootBatchRule(reference=1)(settings, 4).beta2, abs=10 * small**2)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="20 times as large has no beta1"):
        SquareRootBatchRule(reference=1)(SETTINGS, 20)
    with pytest.raises(UsageError, match="no beta2"):
        SquareRootBatchRule(reference=1)(BatchSettings(1.0, 0.99, 0.9, 1.0), 20)
    with pytest.raises(UsageError, match="half-life"):
        ConstantHalfLife(reference=1)(BatchSettings(1.0, 0.9, 0.0, 1.0), 2)


SECOND = [card for card in methods("optim") if card.name in ConstantHalfLife.optimizers]


@pytest.mark.parametrize("card", SECOND, ids=lambda card: card.name)
def test_the_groups_of_an_optimizer_get_their_settings(card: Card) -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = card.target([{"params": [weight], "role": "matrix"}], lr=0.5)
    said = scale_to_batch(ConstantHalfLife(reference=4, lr_exponent=0.5), optimizer.param_groups, 1)
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.25
    assert said[0].startswith("matrix: lr 0.5 -> 0.25")
    fields = card.options().model_fields
    if "beta2" in fields:
        beta = group["betas"][1] if "betas" in group else group["beta2"]
        assert beta == pytest.approx(fields["beta2"].default ** 0.25)
        assert "beta2" in said[0]


def run_config(**more: Any) -> RunConfig:
    model = {"layers": 1, "width": 16, "heads": 1, "vocabulary": 16, "context": 8}
    execution = {"device": "cpu", "precision": "float32", "compile": "none", "attention": "flash", "loss": "plain"}
    return build(RunConfig, {"budget": "1ktok", "model": model, "execution": execution, **more})


@pytest.mark.parametrize(("workers", "beta2"), [(1, 0.95**0.5), (4, 0.95**0.125)])
def test_a_run_follows_the_rule_by_what_one_worker_takes(workers: int, beta2: float) -> None:
    more = {} if workers == 1 else {"workers": workers, "sync": "diloco", "transport": "local"}
    rule = {"name": "constant_half_life", "reference": 16}
    config = run_config(optim="adamw", batch_rule=rule, train={"batch": 8}, **more)
    stepper, _, claims = _stepper(config, Evidence(), None, None)
    assert all(group["betas"] == (0.9, pytest.approx(beta2)) for group in stepper.optimizer.param_groups)
    assert "constant_half_life: matrix: beta2 0.95 -> " in claims


def test_a_run_is_refused_where_the_rule_is_for_another_optimizer() -> None:
    with pytest.raises(UsageError, match="batch_rule = linear is for sgd, and optim = adamw"):
        run_config(optim="adamw", batch_rule={"name": "linear", "reference": 16})
    with pytest.raises(UsageError, match="reference"):
        run_config(optim="sgd", batch_rule="linear")
