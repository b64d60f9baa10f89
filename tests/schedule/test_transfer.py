"""Rules of transfer: the exponents of the papers, nothing at the base scale, and how they are applied."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import Card, methods
from shoestring.schedule.transfer.hyperp import HyperP
from shoestring.schedule.transfer.mup import MuP
from shoestring.schedule.transfer.rule import (
    RoleRule,
    Rules,
    Scale,
    require_optimizer,
    scale_groups,
    scale_weights,
)
from shoestring.schedule.transfer.standard import Standard

ROLES = ("embedding", "head", "matrix", "vector")
EVERY = pytest.mark.parametrize("card", methods("schedule", "transfer"), ids=lambda card: card.name)
SIZES = st.integers(1, 10**5)
TOKENS = st.floats(1, 1e13)


def test_the_table_holds_the_rules() -> None:
    assert {card.name for card in methods("schedule", "transfer")} >= {"standard", "mup", "hyperp"}


@EVERY
@given(width=SIZES, depth=SIZES, tokens=TOKENS)
def test_the_base_recipe_is_left_as_it_is(card: Card, width: int, depth: int, tokens: float) -> None:
    base = {"base_width": width, "base_depth": depth, "base_tokens": tokens}
    options = {key: value for key, value in base.items() if key in card.options().model_fields}
    rules = Choice.of("schedule", card.name, kind="transfer", **options).build()(Scale(width, depth, tokens))
    assert rules == Rules()
    assert rules.input == 1


@EVERY
def test_a_choice_is_frozen_and_checked(card: Card) -> None:
    transfer = Choice.of("schedule", card.name, kind="transfer").build()
    assert all(isinstance(name, str) for name in transfer.optimizers)
    with pytest.raises(AttributeError):
        transfer.base_width = 3
    for option in card.options().model_fields:
        with pytest.raises(UsageError, match=rf"{option} = -1"):
            Choice.of("schedule", card.name, kind="transfer", **{option: -1})
    assert card.summary.endswith(".")
    assert card.claim
    assert card.cost


@given(SIZES, SIZES)
def test_standard_does_nothing(width: int, depth: int) -> None:
    assert Standard()(Scale(width, depth)) == Rules()


def test_mup_at_four_times_the_width() -> None:
    rules = MuP(base_width=64)(Scale(width=256, depth=3, tokens=5e6))
    assert rules.matrix == RoleRule(lr=1 / 4, weight_decay=2.0, initial=1.0)
    assert rules.embedding == rules.head == RoleRule(lr=1.0, weight_decay=1.0, initial=2.0)
    assert rules.vector == RoleRule()
    assert (rules.output, rules.residual) == (1 / 4, 1.0)


@given(SIZES, SIZES, st.floats(0, 1))
def test_mup_keeps_what_the_decay_rule_is_made_to_keep(width: int, base: int, exponent: float) -> None:
    """sqrt(lr / decay) d^0.75, the top singular value in long training, with the paper's exponent."""
    wider = width / base
    plain, rule = MuP(base_width=base, decay_exponent=exponent), MuP(base_width=base)
    matrix = rule(Scale(width, 1)).matrix
    assert (matrix.lr / matrix.weight_decay) ** 0.5 * wider**0.75 == pytest.approx(1)
    assert plain(Scale(width, 1)).matrix.weight_decay == pytest.approx(wider**exponent)
    assert plain(Scale(width, 1)).matrix.lr * wider == pytest.approx(1)


def test_hyperp_over_each_dimension_alone() -> None:
    transfer = HyperP(base_width=128, base_depth=4, base_tokens=1e6)
    wide = transfer(Scale(width=512, depth=4, tokens=1e6))
    assert wide.matrix == wide.vector == RoleRule()
    assert wide.embedding == wide.head == RoleRule(initial=2.0)
    assert (wide.output, wide.residual, wide.input) == (1 / 4, 1.0, 1.0)
    deep = transfer(Scale(width=128, depth=16, tokens=1e6))
    assert {deep.of(role).lr for role in ROLES} == {0.5}
    assert (deep.output, deep.residual, deep.input) == (1.0, 0.5, 2.0)
    long = transfer(Scale(width=128, depth=4, tokens=1e9))
    assert [long.of(role).lr for role in ROLES] == pytest.approx([1000**-0.32] * 4)
    assert (long.output, long.residual) == (1.0, 1.0)
    assert {rules.of(role).weight_decay for rules in (wide, deep, long) for role in ROLES} == {1.0}


def test_hyperp_wants_to_know_the_tokens_only_where_it_uses_them() -> None:
    assert HyperP(base_depth=2)(Scale(256, 2, tokens=7e9)).matrix.lr == 1
    with pytest.raises(UsageError, match="how many tokens this run trains on is not known"):
        HyperP(base_tokens=1e6)(Scale(256, 6))


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"tokens": -1.0}, {"tokens": math.nan}])
def test_a_size_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no fewer than 0 tokens"):
        Scale(**{"width": 1, "depth": 1, **wrong})  # type: ignore[arg-type]


def test_a_rule_is_for_the_optimizers_it_was_derived_for() -> None:
    require_optimizer(MuP(), "adamw")
    require_optimizer(HyperP(), "muon_hypersphere")
    require_optimizer(Standard(), "anything")
    with pytest.raises(
        UsageError, match=r"MuP is for matrices moved by adam_mini or adamw or .*, and these are moved by muon"
    ):
        require_optimizer(MuP(), "muon")
    with pytest.raises(UsageError, match="moved by muon_hypersphere, and these are moved by muon"):
        require_optimizer(HyperP(), "muon")


def test_groups_are_scaled_by_role() -> None:
    rules = Rules(matrix=RoleRule(lr=0.25, weight_decay=2.0), embedding=RoleRule(lr=0.5, weight_decay=0.0))
    groups = [
        {"role": "matrix", "lr": 0.8, "base_lr": 1.6, "weight_decay": 0.1},
        {"role": "embedding", "lr": 0.8, "weight_decay": 0.1},
        {"role": "vector", "lr": 0.8, "base_lr": 0.8},
    ]
    scale_groups(rules, groups)
    assert groups == [
        {"role": "matrix", "lr": 0.2, "base_lr": 0.4, "weight_decay": 0.2},
        {"role": "embedding", "lr": 0.4, "weight_decay": 0.0},
        {"role": "vector", "lr": 0.8, "base_lr": 0.8},
    ]
    with pytest.raises(UsageError, match="the role of every parameter group"):
        scale_groups(rules, [{"lr": 0.1}])
    with pytest.raises(UsageError, match="'output' is no role"):
        scale_groups(rules, [{"lr": 0.1, "role": "output"}])


def test_weights_are_scaled_by_role_without_a_gradient() -> None:
    rules = Rules(embedding=RoleRule(initial=3.0))
    weights = {role: torch.nn.Parameter(torch.full((2, 2), 5.0)) for role in ROLES}
    scale_weights(rules, weights.items())
    assert {role: weight.unique().item() for role, weight in weights.items()} == {
        "embedding": 15.0,
        "head": 5.0,
        "matrix": 5.0,
        "vector": 5.0,
    }
    assert all(weight.is_leaf and weight.grad is None for weight in weights.values())
