import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.config import build
from shoestring.decode.draws import draw
from shoestring.decode.sampling import Sampling, allowed, choose, greedy, log_probability, penalised, probabilities
from shoestring.errors import UsageError

# quarters, so that ties are common
logits = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=12)


def kept(given: list[float], **settings: Any) -> list[int]:
    found = allowed(torch.tensor(given), Sampling(**settings))
    return sorted(range(len(given)) if found is None else found.tolist())


def likeliest(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda token: (-values[token], token))


@given(values=logits)
def test_greedy_takes_the_first_of_the_likeliest(values: list[float]) -> None:
    assert greedy(torch.tensor(values)) == likeliest(values)[0]


@given(values=logits, k=st.integers(0, 14))
def test_top_k_keeps_the_k_likeliest(values: list[float], k: int) -> None:
    assert kept(values, top_k=k) == sorted(likeliest(values)[: k or None])


@given(values=logits, p=st.floats(0, 1))
def test_min_p_keeps_what_has_its_share_of_the_likeliest(values: list[float], p: float) -> None:
    shares = [math.exp(value - max(values)) for value in values]
    if min(abs(share - p) for share in shares) < 1e-9:
        return  # on the edge, where rounding decides
    assert kept(values, min_p=p) == [token for token, share in enumerate(shares) if share > p]


@settings(max_examples=300)
@given(values=logits, p=st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_holds_the_mass(values: list[float], p: float) -> None:
    total = math.fsum(map(math.exp, values))
    order = likeliest(values)
    masses = [math.fsum(math.exp(values[t]) for t in order[:n]) / total for n in range(len(order) + 1)]
    if min(abs(mass - p) for mass in masses) < 1e-9 and p != 1:
        return  # on the edge, where rounding decides
    fewest = next((n for n, mass in enumerate(masses) if mass >= p), len(order)) if p < 1 else len(order)
    assert kept(values, top_p=p) == sorted(order[:fewest])


def test_top_p_that_is_reached_exactly_keeps_no_more() -> None:
    assert kept([0.0] * 4, top_p=0.5) == [0, 1]


def test_top_p_looks_further_where_the_first_candidates_hold_too_little() -> None:
    values = torch.zeros(5000)
    values[4321] = 1.0
    found = allowed(values, Sampling(top_p=0.5))
    assert found is not None
    assert found[0] == 4321
    assert float(values.softmax(0)[found].sum()) == pytest.approx(0.5, abs=3e-4)


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0.5, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 2.0},
        {"temperature": 1.0, "min_p": 0.2},
    ],
)
def test_samples_follow_their_probabilities(how: dict[str, Any]) -> None:
    values, settings_ = torch.tensor([2.0, 1.0, 0.0, -1.0]), Sampling(**how)
    drawn = torch.tensor([choose(values, settings_, draw(7, 0, position)) for position in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert (shares - probabilities(values, settings_)).abs().max() < 0.03


def test_temperature_comes_before_top_p() -> None:
    # at temperature 1 the first token holds 0.73 of the mass, at 4 it holds 0.56
    values = torch.tensor([1.0, 0.0])
    chances = [draw(0, 0, position) for position in range(50)]
    assert {choose(values, Sampling(temperature=1.0, top_p=0.6), chance) for chance in chances} == {0}
    assert {choose(values, Sampling(temperature=4.0, top_p=0.6), chance) for chance in chances} == {0, 1}


def test_a_token_that_may_not_be_chosen_never_is() -> None:
    values = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    for chance in (0.0, 0.5, 1 - 2**-53):
        assert choose(values, Sampling(temperature=1.0), chance) in (1, 3)


@given(
    values=logits,
    penalty=st.sampled_from([0.5, 1.0, 1.3]),
    text=st.lists(st.integers(0, 11), max_size=6),
    prompt=st.lists(st.integers(0, 11), max_size=6),
)
def test_the_repetition_penalty_is_that_of_transformers(
    values: list[float], penalty: float, text: list[int], prompt: list[int]
) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    text, prompt = [[token for token in some if token < len(values)] for some in (text, prompt)]
    ours = penalised(torch.tensor(values), Sampling(repetition_penalty=penalty), Counter(prompt), Counter(text))
    if not text + prompt:
        assert ours.tolist() == values
        return
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + text]), torch.tensor([values]))
    torch.testing.assert_close(ours, theirs[0])


def test_presence_and_frequency_count_the_answer_alone_and_bias_adds() -> None:
    settings_ = Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 2.0})
    ours = penalised(torch.zeros(5), settings_, Counter([0, 0]), Counter([1, 2, 2]))
    assert ours.tolist() == [0.0, -0.75, -1.0, 2.0, 0.0]


def test_draws_are_even_and_belong_to_their_place() -> None:
    drawn = [draw(seed, sample, position) for seed in range(5) for sample in range(5) for position in range(200)]
    assert len(set(drawn)) == len(drawn)
    assert 0 <= min(drawn) < 0.001
    assert 0.999 < max(drawn) < 1
    assert sum(drawn) / len(drawn) == pytest.approx(0.5, abs=0.01)
    assert draw(1, 2, 3) == draw(1, 2, 3) != draw(1, 2, 3, purpose=1)


def test_log_probabilities() -> None:
    told = log_probability(torch.tensor([0.0, 1.0, 1.0, -1.0]), 3, 2)
    wanted = torch.tensor([0.0, 1.0, 1.0, -1.0]).double().log_softmax(0)
    assert told.value == pytest.approx(float(wanted[3]))
    assert [token for token, _ in told.top] == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 2.0}, {"repetition_penalty": 0.0}],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
    with pytest.raises(UsageError, match=next(iter(wrong))):
        build(Sampling, wrong)
