import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.config import build
from shoestring.decode.sampler import SamplingConfig, greedy, keep_top_k, keep_top_p, sample
from shoestring.errors import UsageError

# quarters, so that ties are common
logits = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=12)


def kept(given: Tensor) -> set[int]:
    return set(given.isfinite().nonzero().flatten().tolist())


def likeliest(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda token: (-values[token], token))


@given(values=logits)
def test_greedy_takes_the_first_of_the_likeliest(values: list[float]) -> None:
    assert greedy(torch.tensor(values)) == likeliest(values)[0]


@given(values=logits, k=st.integers(0, 14))
def test_top_k_keeps_the_k_likeliest_as_they_are(values: list[float], k: int) -> None:
    got = keep_top_k(torch.tensor(values), k)
    assert kept(got) == set(likeliest(values)[: k or None])
    assert all(got[token] == values[token] for token in kept(got))


@settings(max_examples=300)
@given(values=logits, p=st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_holds_the_mass(values: list[float], p: float) -> None:
    total = math.fsum(map(math.exp, values))
    order = likeliest(values)
    masses = [math.fsum(math.exp(values[t]) for t in order[:n]) / total for n in range(len(order) + 1)]
    if min(abs(mass - p) for mass in masses) < 1e-9 and p != 1:
        return  # on the edge, where rounding decides
    fewest = next((n for n, mass in enumerate(masses) if mass >= p), len(order)) if p < 1 else len(order)
    got = keep_top_p(torch.tensor(values), p)
    assert kept(got) == set(order[:fewest])
    assert all(got[token] == values[token] for token in kept(got))


def test_top_p_that_is_reached_exactly_keeps_no_more() -> None:
    assert kept(keep_top_p(torch.zeros(4), 0.5)) == {0, 1}


def test_samples_follow_the_distribution_after_temperature() -> None:
    values, settings_ = torch.tensor([2.0, 1.0, 0.0, -1.0]), SamplingConfig(temperature=0.5, top_k=3)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([sample(values, settings_, generator) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    expected = torch.tensor([4.0, 2.0, 0.0, -torch.inf]).softmax(0)
    assert shares[3] == 0
    assert (shares - expected).abs().max() < 0.03


def test_temperature_comes_before_top_p() -> None:
    # at temperature 1 the first token holds 0.73 of the mass, at 4 it holds 0.56
    values, generator = torch.tensor([1.0, 0.0]), torch.Generator().manual_seed(0)
    warm, hot = SamplingConfig(temperature=1.0, top_p=0.6), SamplingConfig(temperature=4.0, top_p=0.6)
    assert {sample(values, warm, generator) for _ in range(50)} == {0}
    assert {sample(values, hot, generator) for _ in range(50)} == {0, 1}


def test_chance_comes_from_the_generator_alone() -> None:
    values, settings_ = torch.zeros(1000), SamplingConfig()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = ([sample(values, settings_, g) for _ in range(5)] for g in map(torch_generator, (3, 3)))
    assert first == second != [sample(values, settings_, torch_generator(4)) for _ in range(5)]
    assert sample(values, SamplingConfig(temperature=0), torch_generator(0)) == 0
    assert torch.equal(torch.get_rng_state(), before)


def torch_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)
    with pytest.raises(UsageError, match=next(iter(wrong))):
        build(SamplingConfig, wrong)
