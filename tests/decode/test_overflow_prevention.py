"""Of a long text, the piece that answers best."""

import pytest
import torch

from shoestring.config import Choice
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.decode import Engine, Request, Sampling
from shoestring.errors import UsageError
from tests.decode.random_models import VOCABULARY, native, wrapped

TEXT = tuple(7 * place * place % VOCABULARY for place in range(100))


@pytest.mark.parametrize("kind", ["native", "gpt2"])
def test_the_piece_is_the_one_after_which_the_model_is_surest(kind: str) -> None:
    model: LanguageModel = native() if kind == "native" else wrapped(kind)
    one = Choice.of("decode", "overflow_prevention", kind="reading", chunk=30, rows=2).build()
    piece = one.choose(model, TEXT, (3, 5), before=(1,))
    expected, flops = list[float](), 0
    for start in range(0, 100, 30):
        reading = model.read(Inputs(torch.tensor([[1, *TEXT[start : start + 30], 3, 5]])))
        chances = reading.logits()[0, -1].detach().double().softmax(-1)
        expected.append(float(-(chances * chances.log()).sum()))
        flops += reading.cost.flops + reading.head.flops(1)
    assert list(piece.entropies) == pytest.approx(expected, abs=1e-4)
    # pieces of the same tokens differ in their last bits alone
    assert expected[piece.number] == pytest.approx(min(expected), abs=1e-4)
    start = 30 * piece.number
    assert piece.prompt == (1, *TEXT[start : start + 30], 3, 5)
    assert piece.spent.flops == flops
    assert piece.spent.read == 3 * 33 + 13
    (answer,) = Engine(model, rows=1).run([Request(piece.prompt, Sampling(temperature=0), 3)])
    assert len(answer.tokens) == 3


def test_pieces_that_do_not_fit_are_refused() -> None:
    one = Choice.of("decode", "overflow_prevention", kind="reading", chunk=64).build()
    with pytest.raises(UsageError, match="set a smaller chunk"):
        one.choose(native(), TEXT, (3,))
    with pytest.raises(UsageError, match="give both"):
        one.choose(native(), TEXT, ())
