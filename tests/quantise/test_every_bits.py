"""One table for every way to choose bits: within the limit, the same each time, and no worse than all alike."""

import itertools

import numpy as np
import pytest
import torch

from shoestring.config import Choice
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.bits.amq import predicted
from shoestring.quantise.bits.automixq import pareto
from shoestring.quantise.bits.integer_program import cheapest
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.limits import limits_of
from shoestring.quantise.parts import Bits, never
from shoestring.quantise.target import BitTarget
from tests.quantise import making

BITS = {
    "uniform": {},
    "selective_rtn": {},
    "integer_program": {},
    "amq": {"rounds": 1, "children": 30, "tried": 2},
    "automixq": {"measured": 4, "drawn": 50, "finalists": 2},
}
FORM = IntegerGroups(group=16, clips=2)
WIDTHS = (2, 3, 4, 8)


def allocation(target: str = "3.5bit", shape: str = "native", over: object = never) -> BitAllocation:
    model = making.model_named(shape)
    matrices = list(model.anatomy().matrices())
    costs, limit, unit, _ = limits_of(BitTarget.parse(target), format=FORM)(matrices, WIDTHS)
    text = making.text()
    return BitAllocation(model, matrices, FORM, WIDTHS, costs, limit, unit, text, over)  # type: ignore[arg-type]


def method(name: str) -> Bits:
    made: Bits = Choice.of("quantise", name, kind="bits", **BITS[name]).build()
    return made


def test_every_way_has_a_place_in_this_table() -> None:
    assert {card.name for card in methods("quantise", "bits")} == set(BITS)


@pytest.mark.parametrize("shape", ["native", "gemma2"])
@pytest.mark.parametrize("name", BITS)
def test_it_chooses_within_the_limit_and_the_same_each_time(name: str, shape: str) -> None:
    problem = allocation(shape=shape)
    before = making.logits(problem.model)
    chosen = method(name).choose(problem)
    assert torch.equal(making.logits(problem.model), before)  # what was tried was put back
    assert problem.fits(chosen)
    assert set(chosen) <= set(WIDTHS)
    assert bool(problem.spent.flops) == method(name).reads
    if shape == "native":
        assert method(name).choose(allocation()) == chosen
        alike = [problem.uniform()] * len(chosen)
        assert problem.loss(chosen) <= problem.loss(alike) * (1.2 if name == "automixq" else 1.0) + 1e-9


@pytest.mark.parametrize("name", BITS)
def test_a_budget_that_ended_still_gives_a_choice(name: str) -> None:
    problem = allocation(over=lambda: True)
    assert problem.fits(method(name).choose(problem))


@pytest.mark.parametrize("target", ["13000B", "3bit"])
def test_bytes_and_bits_are_counted(target: str) -> None:
    problem = allocation(target)
    chosen = method("integer_program").choose(problem)
    if target.endswith("B"):
        encoded = [FORM.at(bits).encode(one.weight) for one, bits in zip(problem.matrices, chosen, strict=True)]
        assert sum(one.nbytes for one in encoded) == problem.cost(chosen) <= 13000
    else:
        count = sum(one.weight.numel() for one in problem.matrices)
        assert (
            problem.cost(chosen)
            == sum(b * m.weight.numel() for b, m in zip(chosen, problem.matrices, strict=True))
            <= 3 * count
        )


def test_what_cannot_be_is_answered_with_the_least_that_would_do() -> None:
    with pytest.raises(
        UsageError, match=r"of 36,864 bits cannot be reached: the least that this format can do is 49,152"
    ):
        allocation("1.5bit")
    with pytest.raises(UsageError, match="is no target: say 4bit"):
        BitTarget.parse("4 bananas")
    with pytest.raises(UsageError, match="1 to 8 bits"):
        BitTarget.parse("12bit")
    assert BitTarget.parse("3ms/token") == BitTarget("seconds", 0.003)
    assert (BitTarget.parse("4bit").whole, BitTarget.parse("3.5bit").whole) == (4, None)


def test_the_programme_is_the_best_of_all_choices() -> None:
    problem = allocation()
    problem.matrices, problem.costs = problem.matrices[:4], problem.costs[:4]
    problem.limit = 3.4 * sum(one.weight.numel() for one in problem.matrices)
    losses = np.random.default_rng(0).random((4, 4))[:, :].cumsum(1)[:, ::-1]
    chosen = cheapest(problem, losses, 5.0)
    able = [one for one in itertools.product(range(4), repeat=4) if problem.fits([WIDTHS[place] for place in one])]
    best = min(losses[np.arange(4), list(one)].sum() for one in able)
    found = losses[np.arange(4), [WIDTHS.index(bits) for bits in chosen]].sum()
    assert found == pytest.approx(best)


def test_a_loss_is_the_divergence_of_its_formula() -> None:
    problem = allocation()
    model = problem.model
    tokens = [batch.inputs for batch in problem.text]
    with torch.no_grad():
        plain = torch.cat([model.read(one).logits().flatten(0, 1) for one in tokens]).log_softmax(-1)
    found = problem.loss([2, *[None] * (len(problem.matrices) - 1)])
    with torch.no_grad():
        problem.matrices[0].weight.copy_(FORM.at(2).encode(problem.matrices[0].weight).dequantise())
        other = torch.cat([model.read(one).logits().flatten(0, 1) for one in tokens]).log_softmax(-1)
    assert found == pytest.approx(float((plain.exp() * (plain - other)).sum(-1).mean()), rel=0.02)


def test_a_predictor_knows_what_it_has_seen_and_a_front_is_one() -> None:
    draw = np.random.default_rng(0)
    known = draw.integers(4, size=(12, 6))
    alone = draw.random((6, 4)).cumsum(1)[:, ::-1]
    losses = alone[np.arange(6), known].sum(1) ** 1.3
    assert np.allclose(predicted(known, losses, known, alone), losses, rtol=0.05)
    costs = draw.random(12)
    front = set(pareto(losses, costs).tolist())
    for place in range(12):
        beaten = any(losses[other] < losses[place] and costs[other] <= costs[place] for other in range(12))
        assert (place in front) == (not beaten)
