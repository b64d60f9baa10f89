"""Small, big or skip: the ways of tokens, and the oracle that picks them, by slow references."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Decision, Edit
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.channel_mixers.duo import DuoFeedForward
from shoestring.model.routing_oracle import WAYS, oracle_report, taking

SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "vocabulary": 30, "context": 16}
TEXT = torch.arange(24).view(2, 12) * 7 % 30


def edit(**options: Any) -> Edit:
    made: Edit = Choice.of("surgery", "duo_llm", kind="edit", **options).build()
    return made


def dense() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def duos(model: torch.nn.Module) -> list[DuoFeedForward]:
    return [module for module in model.modules() if isinstance(module, DuoFeedForward)]


def routed(price: float = 0.0, skip: bool = True) -> Transformer:
    model = edit(small=0.25, skip=skip).apply(dense(), Decision({"seed": 1}))
    with torch.no_grad():
        for layer in duos(model):
            layer.small.output.weight.normal_(std=0.3)
    model = edit(stage="router", price=price).apply(model, Decision({"seed": 2}))
    assert isinstance(model, Transformer)
    return model


def test_all_big_is_the_model_that_there_was_and_only_routers_learn() -> None:
    model = routed(price=0.5)
    with torch.no_grad(), taking(duos(model), ("big", "big")):
        torch.testing.assert_close(model(TEXT), dense()(TEXT))
    again = Transformer(model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(TEXT), model(TEXT))
    reading = model.train().read(Inputs(TEXT))
    auxiliary = reading.auxiliary()
    assert auxiliary is not None
    (reading.logits().logsumexp(-1).sum() + auxiliary).backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {f"blocks.{layer}.channel_mixer.router.weight" for layer in range(2)}


def test_the_gradient_is_that_of_all_modules_and_the_value_that_of_one() -> None:
    (layer, _) = duos(routed(price=2.0))
    layer.double().train()
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    found, notes = layer(x)
    flat = x[0]
    shares = (flat @ layer.router.weight.T).softmax(-1)
    torch.testing.assert_close(notes["loss.price"], 2 * (shares[:, 1] * 0.25 + shares[:, 2]).mean())
    torch.testing.assert_close(layer.eval()(x)[0], found)
    whole = shares[:, 1, None] * layer.small(flat) + shares[:, 2, None] * layer.big(flat)
    weight, away = layer.router.weight, torch.randn_like(flat)
    mine, wanted = (
        torch.autograd.grad((each * away).sum(), weight, retain_graph=True)[0] for each in (found[0], whole)
    )
    torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("skip", [True, False])
def test_chance_is_even_and_the_same_for_the_same_token(skip: bool) -> None:
    layer = Choice.of("model", "duo", kind="channel mixer", way="chance", skip=skip).build(16, 32)
    x = torch.randn(1, 6000, 16)
    load = layer(x)[1]["load"].tolist()
    assert load[0] == 0 if not skip else True
    ways = 3 if skip else 2
    assert all(abs(count - 6000 / ways) < 200 for count in load[3 - ways :])
    assert layer(x[:, :7])[1]["load"].sum() == 7
    torch.testing.assert_close(layer(x[:, :7])[0], layer(x)[0][:, :7])


def test_the_oracle_is_the_best_of_every_pattern_token_by_token() -> None:
    model = routed()
    report = oracle_report(model, [Batch(Inputs(TEXT), TEXT.roll(-1, 1))])
    losses: dict[tuple[str, ...], Tensor] = {}
    costs: dict[tuple[str, ...], int] = {}
    big = duos(model)[0].way_flops()
    with torch.no_grad():
        for pattern in itertools.product(WAYS, repeat=2):
            with taking(duos(model), pattern):
                logits = model(TEXT).log_softmax(-1)
            losses[pattern] = -logits.gather(-1, TEXT.roll(-1, 1)[..., None]).flatten()
            costs[pattern] = sum(big[WAYS.index(way)] for way in pattern)
    assert (report.patterns, report.of) == (9, 9)
    assert [level.flops for level in report.levels] == sorted(set(costs.values()))
    for level in report.levels:
        within = [losses[p] for p in losses if costs[p] <= level.flops]
        oracle = sum(min(float(each[n]) for each in within) for n in range(24)) / 24
        assert level.oracle == pytest.approx(oracle, abs=1e-5)
        assert level.fixed == pytest.approx(min(float(each.mean()) for each in within), abs=1e-5)
        just = [float(losses[p].mean()) for p in losses if costs[p] == level.flops]
        assert level.random == pytest.approx(sum(just) / len(just), abs=1e-5)
        assert level.oracle <= level.fixed <= level.random + 1e-6
    best = torch.stack(list(losses.values())).min(0).values
    torch.testing.assert_close(report.difficulty, losses["skip", "skip"] - best)
    torch.testing.assert_close(report.big, losses["big", "big"])
    flops, loss = report.router
    wanted = -model(TEXT).log_softmax(-1).gather(-1, TEXT.roll(-1, 1)[..., None]).mean()
    assert loss == pytest.approx(float(wanted), abs=1e-5)
    loads = [model.read(Inputs(TEXT)).notes[f"blocks.{layer}.load"].tolist() for layer in range(2)]
    taken = sum(count * each for load in loads for count, each in zip(load, big, strict=True))
    assert flops == pytest.approx(taken / 24)
    reached = [level.oracle for level in report.levels if level.flops <= flops]
    assert report.regret == pytest.approx(loss - reached[-1], abs=1e-5)
    assert report.spent.calls == 11
    some = oracle_report(model, [Batch(Inputs(TEXT), TEXT)], most=6)
    assert (some.patterns, some.of) == (6, 9)


def test_what_has_no_choice_is_refused() -> None:
    with pytest.raises(UsageError, match="channel mixers of the kind 'duo'"):
        oracle_report(dense(), [])
    with pytest.raises(UsageError, match="set way = router"):
        oracle_report(edit().apply(dense(), Decision({"seed": 1})), [])
    with pytest.raises(UsageError, match="had the stage 'modules' before"):
        edit(stage="router").apply(dense(), Decision({"seed": 1}))
