"""The keyed permutation: a bijection for every n and key, and even enough to be an order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data import Permutation


@settings(deadline=None, max_examples=200)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
def test_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(Permutation(n, seed, epoch)(np.arange(n))), np.arange(n))


@settings(deadline=None)
@given(n=st.integers(2**40, 2**62 - 1), start=st.integers(0, 2**40 - 100))
def test_huge_n_stays_in_range_and_never_repeats(n: int, start: int) -> None:
    values = Permutation(n, 7)(np.arange(start, start + 100))
    assert values.min() >= 0
    assert values.max() < n
    assert len(set(values.tolist())) == 100


def test_a_place_does_not_depend_on_what_is_asked_beside_it() -> None:
    whole = Permutation(1000, 3, 4)(np.arange(1000))
    assert [int(Permutation(1000, 3, 4)(np.array([place]))[0]) for place in (0, 17, 999)] == whole[
        [0, 17, 999]
    ].tolist()


def test_another_seed_or_epoch_is_another_order() -> None:
    orders = {tuple(Permutation(50, seed, epoch)(np.arange(50))) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_every_order_of_four_comes_up_about_equally_often() -> None:
    orders = [tuple(Permutation(4, seed)(np.arange(4)).tolist()) for seed in range(4800)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    # chi-square with 23 degrees of freedom: 58 is passed by chance once in 10,000 sets of seeds, and these are fixed
    assert sum((count - 200) ** 2 / 200 for count in counts) < 58


def test_neighbours_are_spread_over_the_whole() -> None:
    n = 100_003
    values = Permutation(n, 0, 0)(np.arange(n)).astype(float)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(values, np.arange(n))[0, 1]) < 4 / np.sqrt(n)
    assert abs((np.diff(values) == 1).sum() - 1) < 6  # one pair in n neighbours is expected to stay together


@pytest.mark.parametrize("n", [0, -1, 2**62])
def test_a_size_that_cannot_be_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="permutation"):
        Permutation(n, 0)
