"""How one budget is divided among experts, and how what they are made of is written down."""

import tomllib
from dataclasses import replace

import pytest

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Totals
from shoestring.config import build, to_toml, tree
from shoestring.errors import ShoestringError
from shoestring.experts.allocation import divided, remaining, token_ratios
from shoestring.experts.config import ExpertsConfig, resized, size_name
from shoestring.model.config import ModelConfig
from shoestring.train.config import RunConfig


def test_a_budget_is_divided_by_the_rule() -> None:
    small = ModelConfig(layers=1, width=32, heads=2, vocabulary=50, context=16)
    large = replace(small, layers=3)
    models = [small, small, large]
    assert token_ratios("tokens", models, 0.25) == [1, 1, 1]
    assert token_ratios("difficulty", models, 0.25) == [0.75, 1.0, 1.25]  # the 300, 400 and 500 steps of HDEE
    for text in ("9Mflops", "900s"):
        (total,) = Budget.parse(text).limits.values()
        (unit,) = Budget.parse(text).limits
        even = [part.limits[unit] for part in divided(Budget.parse(text), models, token_ratios("equal", models, 0))]
        assert even == pytest.approx([total / 3] * 3)
        longer = [part.limits[unit] for part in divided(Budget.parse(text), models, [1, 1, 1])]
        assert sum(longer) == pytest.approx(total)
        assert longer[0] == longer[1] < longer[2]
    assert [part.tokens for part in divided(Budget.parse("900tok"), models, [1, 1, 1])] == [300, 300, 300]
    left = remaining(Budget.parse("1ktok,10s"), Totals(seconds={"compute": 4.0}, tokens=100))
    assert (left.tokens, left.seconds) == (900, 6)
    with pytest.raises(ShoestringError, match="the budget in tokens ended before them"):
        remaining(Budget.parse("1ktok"), Totals(tokens=1000))


def test_sizes_are_read_and_written() -> None:
    base = ModelConfig(layers=2, width=64, heads=4, key_value_heads=2, vocabulary=50, context=16)
    found = resized(base, "3x96")
    assert (found.layers, found.width, found.heads, found.key_value_heads, found.head_width) == (3, 96, 6, 3, 16)
    assert resized(base, size_name(found)) == found
    assert resized(base, "2x64x192").hidden == 192
    for wrong in ("2", "2x", "ax3", "2x70", "0x64", "1x2x3x4"):
        with pytest.raises(ValueError, match="is no size"):
            resized(base, wrong)


def test_a_configuration_is_kept_whole() -> None:
    run = RunConfig(Budget.parse("1Mtok"), ModelConfig(vocabulary=50))
    config = ExpertsConfig(run, count=2, sizes=("1x64", "2x64"), dense=run)
    again = build(ExpertsConfig, tomllib.loads(to_toml(config)))
    assert tree(again) == tree(config)
    assert [size_name(model) for model in config.models()] == ["1x64x192", "2x64x192"]
    assert config.needs_difficulty
