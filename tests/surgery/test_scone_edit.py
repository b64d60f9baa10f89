"""The edit `scone`: frequent n-grams are listed, the first layer is wrapped, and the model is built again from what it says."""

import pytest
import torch

from shoestring.config import Choice, build
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer

SIZES = {"layers": 2, "width": 16, "heads": 2, "vocabulary": 20, "context": 16}


def text(rows: list[list[int]]) -> tuple[Batch, ...]:
    ids = torch.tensor(rows)
    return (Batch(Inputs(ids), ids),)


def test_frequent_ngrams_are_listed_and_the_model_comes_back_from_its_configuration() -> None:
    torch.manual_seed(0)
    model = Transformer(build(ModelConfig, SIZES)).eval()
    edit = Choice.of("surgery", "scone", kind="edit", count=3, longest=3).build()
    decision = edit.decide(model, Evidence(5, text([[1, 2, 3, 1, 2, 3, 1, 2], [9, 8, 7, 6, 5, 4, 1, 2]])))
    assert decision.values["ngrams"] == ["1 2", "1 2 3", "2 3"]
    made = edit.apply(model, decision)
    ids = torch.tensor([[7, 1, 2, 3, 4, 1, 2]])
    again = Transformer(made.config).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(ids), made(ids))
    other = edit.apply(Transformer(build(ModelConfig, SIZES)), decision)
    assert all(
        torch.equal(one, two) for one, two in zip(other.spans.parameters(), made.spans.parameters(), strict=True)
    )
    with pytest.raises(UsageError, match="layer 0 is in another span"):
        edit.apply(made, decision)


def test_text_in_which_nothing_repeats_and_ngrams_that_do_not_fit_are_refused() -> None:
    edit = Choice.of("surgery", "scone", kind="edit").build()
    with pytest.raises(UsageError, match="no n-gram stands twice"):
        edit.decide(Transformer(build(ModelConfig, SIZES)), Evidence(0, text([[1, 2, 3, 4]])))
    with pytest.raises(UsageError, match="do not fit a vocabulary of 20"):
        Transformer(build(ModelConfig, {**SIZES, "span": [{"at": "0", "name": "scone", "ngrams": ["3 25"]}]}))
    with pytest.raises(UsageError, match="--edits scone"):
        Transformer(build(ModelConfig, {**SIZES, "span": [{"at": "0", "name": "scone"}]}))
