"""Filling in: every order and every cache through one table, and each against a slow loop without a cache."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.config import build
from shoestring.contract.batch import HIDDEN
from shoestring.decode import Engine, Sampling, Stop, generate
from shoestring.decode.denoise import Denoiser, DenoisingConfig
from shoestring.decode.denoising import DenoisingStep
from shoestring.decode.denoising_caches.dkv_decode import DelayedDecode
from shoestring.decode.denoising_caches.dkv_greedy import DelayedGreedy
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from tests.flop_counting import CPU_ATTENTION

LIKELIEST = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(2)
    made = Transformer(ModelConfig(layers=2, width=16, heads=2, vocabulary=30, context=24, causal=False, hides=True))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return made.double().eval()


def settings(**keys: Any) -> DenoisingConfig:
    found: DenoisingConfig = build(DenoisingConfig, keys)
    return found


def test_the_surest_places_are_filled_first_as_a_slow_loop_has_it(model: Transformer) -> None:
    answer = Denoiser(model, settings(steps=4)).answer([5, 7], LIKELIEST, max_new_tokens=10)
    values = torch.tensor([5, 7, *[HIDDEN] * 10])
    for count in (3, 3, 2, 2):
        with torch.no_grad():
            chances = model(values[None])[0].softmax(-1)
        sure = {p: float(chances[p].max()) for p in range(12) if values[p] == HIDDEN}
        for place in sorted(sure, key=lambda p: -sure[p])[:count]:
            values[place] = chances[place].argmax()
    assert answer.tokens == tuple(values[2:].tolist())
    assert answer.spent.charge.calls == 4


@pytest.mark.parametrize("order", [card.name for card in methods("decode", "denoising order")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_order_fills_all_and_samples_differ_only_where_chance_does(
    model: Transformer, order: str, temperature: float
) -> None:
    denoiser = Denoiser(model, settings(steps=6, block=5, order=order))
    sampling = Sampling(temperature=temperature, top_p=0.9, seed=3)
    one, same, other = (denoiser.answer([1], sampling, max_new_tokens=15, sample=n) for n in (0, 0, 1))
    assert one.tokens == same.tokens
    assert len(one.tokens) == 15
    assert min(one.tokens) >= 0
    assert temperature == 0 or one.tokens != other.tokens
    assert (one.stop, one.spent.charge.calls) == (Stop.LENGTH, 6)


@pytest.mark.parametrize("cache", [card.name for card in methods("decode", "denoising cache")])
def test_every_cache_that_keeps_nothing_is_no_cache_and_one_that_keeps_costs_what_it_says(
    model: Transformer, cache: str
) -> None:
    plain = Denoiser(model, settings(order="random_order")).answer([1, 2], LIKELIEST, max_new_tokens=12)
    none = Denoiser(model, settings(order="random_order", cache={"name": cache, "refresh": 1}))
    assert none.answer([1, 2], LIKELIEST, max_new_tokens=12).tokens == plain.tokens
    kept = Denoiser(model, settings(order="random_order", cache={"name": cache, "refresh": 4}))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        answer = kept.answer([1, 2], LIKELIEST, max_new_tokens=12)
    charge = answer.spent.charge
    assert charge.flops == counter.get_total_flops() < 0.8 * plain.spent.charge.flops
    assert charge.read + charge.written + charge.wasted + charge.reused == 12 * 14
    assert min(answer.tokens) >= 0


def test_delayed_caches_compute_the_places_of_their_papers() -> None:
    def marks(*places: int) -> torch.Tensor:
        found = torch.zeros(10, dtype=torch.bool)
        found[list(places)] = True
        return found

    step = DenoisingStep(3, marks(1, 2, 9), marks(1, 2, 5, 9), marks(9))
    assert torch.equal(DelayedDecode(refresh=8).due(step), marks(1, 2, 5, 9))
    assert DelayedDecode(refresh=3).due(step).all()
    assert torch.equal(DelayedGreedy(window=0).due(step), marks(5, 9))
    assert torch.equal(DelayedGreedy(window=3).due(step), marks(3, 4, 5, 6, 9))


def test_an_answer_ends_where_a_token_ends_it_and_generate_fills_in(model: Transformer) -> None:
    whole = Denoiser(model).answer([1, 2], LIKELIEST, max_new_tokens=30)
    assert (whole.stop, len(whole.tokens)) == (Stop.CONTEXT, 22)
    end = whole.tokens[4]
    cut = Denoiser(model).answer([1, 2], LIKELIEST, max_new_tokens=30, ends={end})
    assert (cut.stop, cut.tokens) == (Stop.END, whole.tokens[: whole.tokens.index(end)])
    told: list[Any] = []
    found = list(generate(model, [1, 2], LIKELIEST, max_new_tokens=30, on_end=lambda *each: told.append(each)))
    assert tuple(found) == whole.tokens
    assert told[0][0] is Stop.CONTEXT


def test_what_cannot_be_is_refused(model: Transformer) -> None:
    with pytest.raises(UsageError, match="sees both ways"):
        Engine(model)
    with pytest.raises(UsageError, match=r"give --denoise\.order random_order"):
        Denoiser(model, settings(cache="dkv_greedy"))
    with pytest.raises(UsageError, match="penalties"):
        Denoiser(model).answer([1], Sampling(repetition_penalty=1.2))
    with pytest.raises(UsageError, match="give more steps"):
        Denoiser(model, settings(steps=2, block=2)).answer([1], LIKELIEST, max_new_tokens=10)
    with pytest.raises(UsageError, match="token by token"):
        Denoiser(Transformer(ModelConfig(layers=1, width=16, heads=2, vocabulary=30, context=24)))
