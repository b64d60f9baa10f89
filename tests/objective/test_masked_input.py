"""Masked-input regularisation: both terms against their formula, and its cost against torch's counter."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import HIDDEN, Batch, Inputs
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.masked_input import MaskedInput
from tests.flop_counting import CPU_ATTENTION


def made(hides: bool = True) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(layers=1, width=16, heads=2, vocabulary=40, context=32, hides=hides))


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_its_formula_and_costs_what_it_says(weighted: bool) -> None:
    model, objective, at = made(), MaskedInput(plain, weight=0.3, most=0.8, first=4), At(step=5, seed=2)
    torch.manual_seed(1)
    tokens, targets = torch.randint(40, (3, 32)), torch.randint(40, (3, 32))
    weights = torch.rand(3, 32) if weighted else None
    batch = Batch(Inputs(tokens), targets, weights)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = objective(model, batch, at)
        loss.total.backward()
    assert loss.spent[MODEL].flops == counter.get_total_flops()
    hidden = objective.hidden(batch, at)
    assert not hidden[:, :4].any()
    assert 0 < hidden.float().mean() < 0.8
    counts = torch.ones(3, 32) if weights is None else weights
    wanted = torch.zeros(())
    for factor, values in ((1.0, tokens), (0.3, tokens.masked_fill(hidden, HIDDEN))):
        each = F.cross_entropy(model(values).flatten(0, 1), targets.flatten(), reduction="none").view(3, 32)
        wanted = wanted + factor * (each * counts).sum() / counts.sum()
    torch.testing.assert_close(loss.mean, wanted)
    assert torch.equal(objective.hidden(batch, at), hidden)


def test_a_model_that_reads_no_hidden_tokens_is_refused() -> None:
    batch = Batch(Inputs(torch.zeros(1, 9, dtype=torch.int64)), torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"--model\.hides true"):
        MaskedInput(plain)(made(hides=False), batch, At())
