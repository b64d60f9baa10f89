"""Routers of layers: what they say is their formula, the search finds what is planted, and training learns what it is shown."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.depths.dr_llm import DrLLM
from shoestring.decode.layer_routers import FixedDepth, LayerRouters, balanced, focal_loss, search, train_routers
from shoestring.decode.preparation import Given
from shoestring.decode.preparations.dr_llm import dr_llm
from shoestring.errors import UsageError
from tests.decode.random_models import prompts
from tests.decode.test_depths import deep

GREEDY = Sampling(temperature=0)


def test_a_router_pools_windows_and_takes_the_mean_of_what_they_say() -> None:
    torch.manual_seed(0)
    routers = LayerRouters(3, 8, hidden=5, windows=4)
    torch.nn.init.normal_(routers.second)
    torch.nn.init.normal_(routers.bias)
    for length, sizes in ((3, (1, 1, 1)), (10, (3, 3, 2, 2))):
        hidden, scores, start = torch.randn(length, 8), [], 0
        for size in sizes:
            mean = hidden[start : start + size].mean(0)
            normed = mean / (mean.square().mean() + torch.finfo(torch.float32).eps).sqrt()
            scores.append(routers.second[1] @ F.gelu(routers.first[1] @ normed) + routers.bias[1])
            start += size
        assert torch.allclose(routers(1, hidden), torch.stack(scores).mean(0), atol=1e-5)
        assert routers.times(1, hidden[None]) == int(torch.stack(scores).mean(0).argmax())
    with pytest.raises(UsageError, match="one text at a time"):
        routers.times(0, torch.zeros(2, 3, 8))


def test_the_focal_loss_is_its_formula_and_rare_actions_weigh_more() -> None:
    logits, actions = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 1, 2, 1])
    weights = balanced(actions)
    assert weights[1] < weights[0] == weights[2]
    assert float(weights.mean()) == pytest.approx(1)
    assert balanced(torch.tensor([1, 1, 0]))[2] == 0
    expected = 0.0
    for row, action in zip(logits, actions.tolist(), strict=True):
        p = float(row.softmax(0)[action])
        expected -= float(weights[action]) * (1 - p) ** 2 * float(torch.tensor(p).log()) / 6
    assert float(focal_loss(logits, actions, weights, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_the_search_finds_what_an_exhaustive_one_does() -> None:
    """Layers 1 and 3 do nothing, 4 does harm, and 2 helps when it is applied twice."""

    def score(times: tuple[int, ...]) -> float:
        return 1.0 * (times[0] == 1) + 0.5 * (times[2] == 2) + 0.5 * (times[2] >= 1) - 0.3 * times[4] + 0.0 * times[1]

    able = [times for times in itertools.product((0, 1, 2), repeat=5) if 0 < sum(times) <= 6]
    best = min(
        (times for times in able if score(times) >= score((1,) * 5)), key=lambda times: (-score(times), sum(times))
    )
    found, scored = search(5, score, rollouts=120)
    assert found == best == (1, 0, 2, 0, 0)
    assert scored < len(able)
    assert search(5, score, rollouts=0) == ((1,) * 5, 1)
    # within the budget of layers
    assert sum(search(5, lambda times: float(sum(times)), rollouts=60, most=1.2)[0]) == 6


def test_routers_learn_what_they_are_shown_and_a_text_keeps_its_layers(tmp_path: Path) -> None:
    model = deep(4)
    texts = prompts(6, seed=2)
    kinds = [(1, 0, 1, 1), (1, 1, 0, 1)]
    examples = [(text, kinds[text[0] % 2]) for text in texts]
    assert {times for _, times in examples} == set(kinds)
    routers, losses, charge = train_routers(model, examples, steps=120)
    assert losses[-1] < 0.05 * losses[0]
    assert charge.read == sum(map(len, texts))
    for text, times in examples:
        fixed = FixedDepth(times)
        expected = model.read(Inputs(torch.tensor([text])), depth=fixed)
        got = model.read(Inputs(torch.tensor([text])), depth=routers)
        assert torch.equal(got.hidden, expected.hidden)
        assert got.cost == expected.cost
    routers.save(tmp_path / "routers")
    depth = DrLLM(model, tmp_path / "routers")
    engine = Engine(model, rows=3, depth=depth)
    got_all = list(engine.run([Request(text, Sampling(temperature=0), 5) for text in texts]))
    assert sum(each.spent.charge.read for each in got_all) == 2 * sum(map(len, texts))  # once to choose, once to read
    for each in got_all:
        text, times = examples[each.number - 1]
        first = model.read(Inputs(torch.tensor([text])), depth=FixedDepth(times)).logits()[0, -1].argmax()
        assert each.tokens[0] == int(first)


def test_a_layer_that_does_nothing_is_found_learnt_and_left_out_of_answers(tmp_path: Path) -> None:
    """From the search to decoding: the text stays, and it costs less."""
    model = deep(4)
    with torch.no_grad():
        for mixer in ("token_mixer", "channel_mixer"):
            model.get_parameter(f"blocks.2.{mixer}.output.weight").zero_()
    texts = prompts(6, seed=2)
    whole = [next(Engine(model, rows=1).run([Request(text, GREEDY, 8)])) for text in texts]
    given = [Given((*text, *answer.tokens), len(text)) for text, answer in zip(texts, whole, strict=True)]
    made = dr_llm(model, given, rollouts=20, slack=1e-4, price=0.01, steps=60)
    assert made.found[0].startswith("1.0 of 4 layers are left out for a text")
    made.save(tmp_path / "routers")
    for text, before in zip(texts, whole, strict=True):
        engine = Engine(model, rows=1, depth=DrLLM(model, tmp_path / "routers"))
        (each,) = engine.run([Request(text, GREEDY, 8)])
        assert each.tokens == before.tokens
        size, block = len(text), model.blocks[2]
        chosen = model.read(Inputs(torch.tensor([text])), depth=FixedDepth((1, 1, 0, 1))).cost.flops
        left_out = sum(block.flops(Shape(1, 1, size + at)) for at in range(7))  # type: ignore[operator]
        left_out += block.flops(Shape(1, size))  # type: ignore[operator]
        assert each.spent.charge.flops == before.spent.charge.flops - left_out + chosen


def test_what_does_not_suit_is_refused_in_one_line(tmp_path: Path) -> None:
    model = deep(4)
    LayerRouters(3, 32).save(tmp_path / "few")
    with pytest.raises(UsageError, match=r"few: 'first' is \[3, 32, 32\], and \[4, -1, 32\] is needed"):
        DrLLM(model, tmp_path / "few")
    with pytest.raises(UsageError, match="search for some first"):
        train_routers(model, [])
