"""One table for every rule of when quantisation begins."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import Card, methods
from shoestring.schedule.cosine import Cosine
from shoestring.schedule.quantise.compute_optimal import ComputeOptimal
from shoestring.schedule.quantise.late import Late
from shoestring.schedule.quantise.rule import Extent
from shoestring.schedule.wsd import WSD

CARDS = methods("schedule", "quantise")
EVERY = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
EXTENTS = st.builds(Extent, st.integers(1, 10**12), st.floats(1, 1e14), st.sampled_from([1.0, math.log2(3), 4.0, 8.0]))


def test_the_table_holds_the_rules() -> None:
    assert {card.name for card in CARDS} >= {"always", "late", "compute_optimal"}


@EVERY
@given(extent=EXTENTS)
def test_it_starts_within_the_budget_and_joins_a_wsd(card: Card, extent: Extent) -> None:
    rule = card.target()
    start = rule.start(extent)
    assert 0 <= start < 1
    joined = rule.joined(WSD(decay=0.3), start)
    assert 0 <= joined(start) <= 1
    assert joined(1.0) == 0


@EVERY
def test_a_bad_argument_gets_one_clear_line(card: Card) -> None:
    assert "arXiv:" in card.paper
    for option in card.options().model_fields:
        with pytest.raises(UsageError, match=rf"{card.name}\.{option}"):
            Choice.of("schedule", card.name, kind="quantise", **{option: "nonsense"})


def test_the_rule_by_the_numbers_of_the_paper() -> None:
    """S = D / (N B / 8) and f = exp(log S - 6.7297 / log S) / S, at 4 bits, worked out by hand."""
    rule = ComputeOptimal(least=1e-6)
    for parameters, tokens, expected in ((396e6, 1e12, 0.4544), (86e6, 2.3e9, 0.1841), (2.2e9, 1.4e12, 0.3901)):
        per_byte = tokens / (parameters * 4 / 8)
        direct = math.exp(math.log(per_byte) - 6.7297 / math.log(per_byte)) / per_byte
        found = 1 - rule.start(Extent(int(parameters), tokens, 4.0))
        assert found == pytest.approx(direct)
        assert found == pytest.approx(expected, abs=1e-3)


@given(st.floats(1.001, 1e6), st.floats(1.001, 100))
def test_the_share_grows_with_the_tokens_a_byte(per_byte: float, times: float) -> None:
    rule = ComputeOptimal()
    assert 0 <= rule.fraction(per_byte) <= rule.fraction(per_byte * times) < 1


def test_below_a_token_a_byte_the_least_share_is_taken() -> None:
    rule = ComputeOptimal(least=0.2)
    assert rule.fraction(1.0) == rule.fraction(0.1) == 0
    assert rule.start(Extent(1000, 10.0, 8.0)) == pytest.approx(0.8)


def test_the_tokens_must_be_known_and_those_given_stand() -> None:
    with pytest.raises(UsageError, match=r"must know the tokens.*quantise\.tokens"):
        ComputeOptimal().start(Extent(1000, 0.0, 4.0))
    told = ComputeOptimal(tokens=1e6)
    assert told.start(Extent(1000, 0.0, 4.0)) == told.start(Extent(1000, 5e9, 4.0))


def test_fused_the_decay_begins_where_quantisation_does() -> None:
    rule = Late(fraction=0.25, fused=True)
    start = rule.start(Extent(1, 1.0, 1.0))
    joined = rule.joined(WSD(decay=0.9, shape="linear", floor=0.1), start)
    assert isinstance(joined, WSD)
    assert joined == WSD(decay=0.25, shape="linear", floor=0.1)
    assert joined(start) == 1
    assert joined(start + 0.125) == pytest.approx(0.55)
    assert Late(fraction=0.25).joined(Cosine(), start) == Cosine()
    with pytest.raises(UsageError, match="this is cosine"):
        rule.joined(Cosine(), start)
