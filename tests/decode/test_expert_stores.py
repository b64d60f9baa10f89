"""Experts that lie on disk: every policy writes what the whole model writes; what is held, found and fetched, by hand."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.cli.expert_flags import take_experts
from shoestring.config import Choice, build
from shoestring.contract.batch import Inputs
from shoestring.contract.experts import ExpertsAsked, ExpertSource
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.expert_policies.expert_flow import ExpertFlow
from shoestring.decode.expert_store import ExpertConfig, ExpertStore, put_experts_away
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer

EVERY = [card.name for card in methods("decode", "expert policy")]
SIZES: dict[str, Any] = {
    "layers": 3,
    "width": 16,
    "heads": 2,
    "vocabulary": 30,
    "context": 48,
    "channel_mixer": {"name": "moe", "experts": 6, "shared": 1},
}
EXPERT = 3 * 16 * 21 * 4
"""Bytes of an expert: three matrices of 16 by 21 in float32: two active experts and a shared one have 64 together."""


def made() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def stored(policy: str, memory: str, model: Transformer) -> ExpertStore:
    choice = Choice.of("decode", policy, kind="expert policy")
    store = put_experts_away(model, ExpertConfig(memory=memory, policy=choice))
    assert store is not None
    return store


@pytest.mark.parametrize("policy", EVERY)
@pytest.mark.parametrize("memory", ["1%", "50%", f"{7 * EXPERT}B", "100%"])
def test_every_policy_writes_what_the_whole_model_writes(policy: str, memory: str) -> None:
    model = made()
    store = stored(policy, memory, model)
    texts = [list(range(5, 12)), list(range(20, 23))]
    with torch.no_grad():
        for text in texts:
            found, wanted = (each.read(Inputs(torch.tensor([text]))).hidden for each in (model, made()))
            torch.testing.assert_close(found, wanted)
    answers = []
    for each in (model, made()):
        engine = Engine(each, rows=2, room=64)
        numbers = [engine.submit(Request(tuple(text), Sampling(temperature=0), 6)) for text in texts]
        written: dict[int, list[int]] = {number: [] for number in numbers}
        while engine.busy:
            for event in engine.step():
                written[event.number] += [one.token for one in event.written]
        answers.append(list(written.values()))
    assert answers[0] == answers[1]
    assert 0 <= store.found <= store.asked
    assert store.useful <= store.fetched
    assert sum(len(slots.matrices) for slots in store._layers) * EXPERT == store.memory <= store.whole == 18 * EXPERT
    held = sum(one.nbytes for slots in store._layers for pair in slots.matrices for one in pair)
    assert held == store.memory
    assert {p.device.type for p in model.parameters() if p.ndim == 3} == {"meta"}
    assert re.search(r"experts: \d+\.\d% of [\d,]+ asked for .* 2\.0 tokens/s$", store.line(4, 2.0))
    if memory == "100%":  # each is read at most once
        assert store.read <= store.whole
        assert store.found > store.asked / 2


class NumberedExperts:
    """A layer of experts that are told apart by their numbers."""

    def __init__(self, experts: int, best: int) -> None:
        self.experts, self.best, self.expert_bytes, self.follows = experts, best, 8, best < 0

    def put_away(self, source: ExpertSource, layer: int) -> tuple[Tensor, Tensor]:
        numbers = torch.arange(self.experts, dtype=torch.float32) + 10 * layer
        return numbers.view(-1, 1, 1), -numbers.view(-1, 1, 1)

    def guess(self, x: Tensor) -> Tensor:
        return -(torch.arange(self.experts) - self.best).abs().float().expand(len(x), -1)


def called(*experts: int) -> ExpertsAsked:
    counts = tuple(int(number in experts) for number in range(4))
    return ExpertsAsked(torch.ones(1, 2), torch.zeros(len(experts), dtype=torch.int64), counts)


def through(store: ExpertStore, *paths: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """A pass that asks these experts of the layers. What was asked for, and what it got."""
    for layer, experts in enumerate(paths):
        for expert, (reading, writing) in store.take(layer, called(*experts)):
            assert float(reading) == -float(writing) == expert + 10 * layer
            yield layer, expert


def test_the_least_recent_leaves_and_the_next_layers_best_come_ahead() -> None:
    config = ExpertConfig(memory="50%", policy=Choice.of("decode", "lru", kind="expert policy", guesses=1))
    store = ExpertStore([NumberedExperts(4, 0), NumberedExperts(4, 3)], config)
    assert list(through(store, (0, 1), (3,))) == [(0, 0), (0, 1), (1, 3)]
    assert (store.asked, store.found, store.fetched, store.useful) == (3, 1, 1, 1)  # 3 came ahead
    assert list(through(store, (1, 2), (0,))) == [(0, 1), (0, 2), (1, 0)]  # 0 leaves the first layer
    assert sorted(store._layers[0].slots) == [1, 2]
    assert sorted(store._layers[1].slots) == [0, 3]
    assert (store.asked, store.found, store.fetched) == (6, 2, 1)  # 3 was there, and did not come again
    list(through(store, (0, 1, 2, 3), (1,)))  # more than there is room for
    assert (store.asked, store.found) == (11, 4)
    assert store.read == 8 * (store.asked - store.found + store.fetched)


def test_a_path_is_predicted_at_the_first_layer_and_the_prediction_learns() -> None:
    policy = ExpertFlow(guesses=1, rate=5.0)
    layers = [NumberedExperts(4, 0), NumberedExperts(4, 1), NumberedExperts(4, 2)]
    policy.know(layers)
    assert policy.ahead(0, called(0)) == [(1, 1), (2, 2)]
    assert policy.leave(1, [1, 3], [0, 5]) == 3  # the older one is on the path
    assert policy.leave(1, [2, 3], [4, 3]) == 3
    x = torch.ones(2)
    before = layers[1].guess(called(0).x)[0]
    policy.ahead(1, called(3))
    weight, bias = policy._corrections[1]
    step = 2.5 * (torch.tensor([0.0, 0, 0, 1]) - before.sigmoid())
    torch.testing.assert_close(weight, torch.outer(step, x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, step, rtol=1e-4, atol=1e-5)
    assert policy.ahead(0, called(0)) == [(1, 3), (2, 2)]


@pytest.mark.parametrize("policy", EVERY)
def test_layers_that_follow_are_asked_for_what_the_first_is(policy: str) -> None:
    layers = [NumberedExperts(4, 0), NumberedExperts(4, -1), NumberedExperts(4, -1)]
    store = ExpertStore(layers, ExpertConfig(memory="50%", policy=Choice.of("decode", policy, kind="expert policy")))
    for expert in (0, 3, 1, 2):
        list(through(store, (expert,), (expert,), (expert,)))
    assert (store.asked, store.found, store.useful) == (12, 8, 8)  # all but those of the first layer


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"experts.memory: 1 kB are too few: one expert of each layer takes 12.1 kB"):
        stored("lru", "1000B", made())
    with pytest.raises(UsageError, match="no layers with experts"):
        stored("lru", "50%", Transformer(build(ModelConfig, {**SIZES, "channel_mixer": "swiglu"})))
    with pytest.raises(UsageError, match=r"experts cannot be kept in /nowhere: .* set experts.folder"):
        put_experts_away(made(), ExpertConfig(memory="50%", folder="/nowhere"))
    with pytest.raises(UsageError, match="set memory"):
        take_experts(["--experts.policy", "expert_flow"])
    config, others = take_experts(
        ["place", "--experts.memory=25%", "--experts.policy", "lru", "--experts.policy.guesses", "3"]
    )
    assert others == ["place"]
    assert config.policy.options["guesses"] == 3
