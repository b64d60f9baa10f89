import pytest
import torch

from shoestring.budget.charge import Charge
from shoestring.config import build
from shoestring.contract.cost import Shape
from shoestring.decode import SamplingConfig, Stop, generate
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer

GREEDY = SamplingConfig(temperature=0, max_new_tokens=20)


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
        assert list(generate(model, prompt, GREEDY)) == slowly(model, prompt, 20)


def test_it_stops_at_the_end_token_which_is_not_yielded(model: Transformer) -> None:
    expected = slowly(model, [5], 20)
    end = expected[6]
    stops: list[Stop] = []
    got = list(generate(model, [5], GREEDY, end=end, on_stop=stops.append))
    assert got == expected[: expected.index(end)]
    assert stops == [Stop.END]


def test_it_stops_at_max_new_tokens_and_when_the_context_is_full(model: Transformer) -> None:
    stops: list[Stop] = []
    assert len(list(generate(model, [5] * 12, GREEDY, on_stop=stops.append))) == 20
    assert len(list(generate(model, [5] * 30, GREEDY, on_stop=stops.append))) == 3
    assert len(list(generate(model, [5] * 32, GREEDY, on_stop=stops.append))) == 1
    assert stops == [Stop.LENGTH, Stop.CONTEXT, Stop.CONTEXT]
    assert str(stops[1]) == "context is full"


def test_the_seed_settles_the_text(model: Transformer) -> None:
    def text(seed: int) -> list[int]:
        return list(generate(model, [5], SamplingConfig(temperature=2.0, seed=seed, max_new_tokens=20)))

    assert text(1) == text(1) != text(2)
    shared = torch.Generator().manual_seed(1)
    settings = SamplingConfig(temperature=2.0, seed=9, max_new_tokens=20)
    assert list(generate(model, [5], settings, generator=shared)) == text(1)
    assert list(generate(model, [5], settings, generator=shared)) != text(1)


def test_every_pass_is_charged(model: Transformer) -> None:
    charged: list[Charge] = []
    list(generate(model, [1, 2, 3], SamplingConfig(temperature=0, max_new_tokens=3), on_spent=charged.append))
    assert [charge.flops for charge in charged] == [
        model.cost(Shape(1, 3, outputs=1)).flops,
        model.cost(Shape(1, 1, 3)).flops,
        model.cost(Shape(1, 1, 4)).flops,
    ]
    assert [charge.read for charge in charged] == [3, 1, 1]


def test_gradients_stay_on_between_two_tokens(model: Transformer) -> None:
    for _ in generate(model, [5], GREEDY):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()


@pytest.mark.parametrize(("prompt", "words"), [([], "at least one token"), ([5] * 33, "33 tokens")])
def test_a_prompt_that_cannot_be_continued_is_refused(model: Transformer, prompt: list[int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        next(generate(model, prompt, GREEDY))
