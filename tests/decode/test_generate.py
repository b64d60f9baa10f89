import pytest
import torch

from shoestring.config import build
from shoestring.contract.cost import Shape
from shoestring.decode import AnswerSpent, Sampling, Stop, generate
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer

GREEDY = Sampling(temperature=0)


@pytest.fixture(params=[4, 2], ids=["heads", "grouped"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.manual_seed(2)
    shape = {"layers": 2, "width": 32, "heads": 4, "vocabulary": 40, "context": 32, "key_value_heads": request.param}
    made = Transformer(build(ModelConfig, shape))
    with torch.no_grad():  # a new model's blocks add nothing: move it away from its start
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def slowly(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt) :]


def test_generation_is_that_without_a_cache(model: Transformer) -> None:
    for prompt in ([5], [1, 2, 3, 4, 5, 6, 7]):
        assert list(generate(model, prompt, GREEDY, max_new_tokens=20)) == slowly(model, prompt, 20)


def test_it_stops_at_the_end_token_which_is_not_yielded(model: Transformer) -> None:
    expected = slowly(model, [5], 20)
    end = expected[6]
    stops: list[Stop] = []
    got = list(generate(model, [5], GREEDY, max_new_tokens=20, end=end, on_end=lambda stop, _: stops.append(stop)))
    assert got == expected[: expected.index(end)]
    assert stops == [Stop.END]


def test_it_stops_at_max_new_tokens_and_when_the_context_is_full(model: Transformer) -> None:
    stops: list[Stop] = []
    assert (
        len(list(generate(model, [5] * 12, GREEDY, max_new_tokens=20, on_end=lambda stop, _: stops.append(stop)))) == 20
    )
    assert (
        len(list(generate(model, [5] * 30, GREEDY, max_new_tokens=20, on_end=lambda stop, _: stops.append(stop)))) == 3
    )
    assert (
        len(list(generate(model, [5] * 32, GREEDY, max_new_tokens=20, on_end=lambda stop, _: stops.append(stop)))) == 1
    )
    assert stops == [Stop.LENGTH, Stop.CONTEXT, Stop.CONTEXT]
    assert str(stops[1]) == "context is full"


def test_the_seed_settles_the_text(model: Transformer) -> None:
    def text(seed: int) -> list[int]:
        return list(generate(model, [5], Sampling(temperature=2.0, seed=seed), max_new_tokens=20))

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize("taken", [3, 2])
def test_every_pass_is_charged_though_the_caller_stops_early(model: Transformer, taken: int) -> None:
    charged: list[AnswerSpent] = []
    tokens = generate(
        model, [1, 2, 3], Sampling(temperature=0), max_new_tokens=3, on_end=lambda _, spent: charged.append(spent)
    )
    for _ in range(taken):
        next(tokens)
    tokens.close()
    costs = [model.cost(Shape(1, 3, outputs=1)), model.cost(Shape(1, 1, 3)), model.cost(Shape(1, 1, 4))]
    assert [each.charge.flops for each in charged] == [sum(cost.flops for cost in costs[:taken])]
    assert [each.charge.read for each in charged] == [3]


def test_gradients_stay_on_between_two_tokens(model: Transformer) -> None:
    for _ in generate(model, [5], GREEDY, max_new_tokens=20):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()


@pytest.mark.parametrize(("prompt", "words"), [([], "at least one token"), ([5] * 33, "33 tokens")])
def test_a_prompt_that_cannot_be_continued_is_refused(model: Transformer, prompt: list[int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        next(generate(model, prompt, GREEDY, max_new_tokens=20))
