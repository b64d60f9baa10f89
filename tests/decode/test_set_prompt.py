"""A prompt with a set: what sees what, native and wrapped, and an answer that no order of the parts changes."""

from itertools import permutations

import pytest
import torch

from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.decode import Sampling, Stop, generate
from shoestring.decode.set_prompt import SetPrompt, answer_set, order_gap
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.model.hf import to_transformers
from shoestring.model.wrapped import Wrapped

PROMPT = SetPrompt((5, 9), ((1, 2, 3), (4,), (6, 7)), (8, 2))
LIKELIEST = Sampling(temperature=0)


def native() -> Transformer:
    torch.manual_seed(1)
    model = Transformer(ModelConfig(layers=2, width=16, heads=2, vocabulary=12, context=40))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", ["native", "wrapped"])
def test_no_order_of_the_parts_changes_what_is_said(name: str) -> None:
    model: LanguageModel = native().double()
    if name == "wrapped":
        model = Wrapped(to_transformers(native()).double())
    orders = list(permutations(range(3)))
    assert order_gap(model, PROMPT, orders) < 1e-11
    plain = [[5, 9, *(t for place in order for t in PROMPT.parts[place]), 8, 2] for order in orders]
    with torch.no_grad():
        said = [model.read(Inputs(torch.tensor([tokens]))).logits()[0, -1] for tokens in plain]
    assert max(float((one - said[0]).abs().max()) for one in said) > 1e-3  # as it does without a set
    turned = [SetPrompt(PROMPT.before, tuple(PROMPT.parts[place] for place in order), PROMPT.after) for order in orders]
    assert len({answer_set(model, one, LIKELIEST, max_new_tokens=6).tokens for one in turned}) == 1


def test_positions_and_mask_are_those_of_the_paper() -> None:
    inputs = PROMPT.inputs()
    assert inputs.positions is not None
    assert inputs.mask is not None
    assert inputs.positions.tolist() == [[0, 1, 2, 3, 4, 2, 2, 3, 5, 6]]
    owners = [None, None, 0, 0, 0, 1, 2, 2, None, None]
    for query in range(10):
        for key in range(10):
            apart = owners[query] is not None and owners[key] is not None and owners[query] != owners[key]
            assert bool(inputs.mask[0, query, key]) == (key <= query and not apart)


def test_a_set_of_one_part_is_the_plain_prompt_and_each_pass_reads_one_token_more() -> None:
    model = native().double()
    prompt = SetPrompt((5, 9), ((1, 2, 3),), (8, 2))
    answer = answer_set(model, prompt, LIKELIEST, max_new_tokens=7)
    assert list(answer.tokens) == list(generate(model, prompt.tokens, LIKELIEST, max_new_tokens=7))
    charge = answer.spent.charge
    assert (charge.read, charge.written, charge.calls, answer.stop) == (7, 7, 7, Stop.LENGTH)
    cut = answer_set(model, prompt, LIKELIEST, max_new_tokens=7, ends={answer.tokens[2]})
    assert cut.stop is Stop.END
    assert cut.tokens == answer.tokens[: answer.tokens.index(answer.tokens[2])]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="a token or more after it"):
        SetPrompt((1,), ((2,),), ())
    with pytest.raises(UsageError, match="shorten it"):
        answer_set(native(), SetPrompt((1,) * 38, ((2,),), (3,)), LIKELIEST)
    with pytest.raises(UsageError, match="penalties"):
        answer_set(native(), PROMPT, Sampling(presence_penalty=1.0))
