"""Masked diffusion: its loss against its formula, its bound against all masks there are, and its cost against torch's counter."""

from itertools import combinations
from math import comb

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import HIDDEN, IGNORED, Batch, Inputs
from shoestring.contract.objective import At, HeldoutJudge
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.masked_diffusion import MaskedDiffusion, weights_of
from tests.flop_counting import CPU_ATTENTION


def made(context: int = 16, causal: bool = False) -> Transformer:
    torch.manual_seed(3)
    sizes = ModelConfig(layers=1, width=16, heads=2, vocabulary=20, context=context, causal=causal, hides=True)
    model = Transformer(sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch(rows: int = 3, length: int = 12, weighted: bool = False) -> Batch:
    torch.manual_seed(4)
    ids = torch.randint(20, (rows, length + 1))
    targets = ids[:, 1:].clone()
    targets[1, 3] = IGNORED
    return Batch(Inputs(ids[:, :-1]), targets, torch.rand(rows, length) if weighted else None)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_its_formula_and_costs_what_it_says(weighted: bool) -> None:
    model, text, objective, at = made(), batch(weighted=weighted), MaskedDiffusion(plain), At(step=2, seed=7)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = objective(model, text, at)
        loss.total.backward()
    assert loss.spent[MODEL].flops == counter.get_total_flops()
    shares, hidden = objective.drawn(weights_of(text) > 0, at)
    total, count = torch.zeros(()), 0.0
    for row in range(3):
        values = text.inputs.values[row].clone()
        values[hidden[row]] = HIDDEN
        logits = model(values[None])[0].log_softmax(-1)
        for place in range(1, 12):
            if text.targets[row, place - 1] != IGNORED:
                weight = 1.0 if text.weights is None else float(text.weights[row, place - 1])
                count += weight
                if values[place] == HIDDEN:
                    total = total - weight / shares[row] * logits[place, text.inputs.values[row, place]]
    assert not hidden[:, 0].any()
    assert not hidden[1, 4]
    assert hidden.any()
    torch.testing.assert_close(loss.mean, total / count)
    assert objective.count(text) == pytest.approx(count)


def test_the_bound_is_the_mean_over_all_masks_and_the_same_in_any_batch() -> None:
    """Of a row of 4 tokens after the first: E_l E_{S of l} (4 / l) sum_S -log p."""
    model = made(context=5).double().eval()
    ids = torch.tensor([[3, 9, 1, 12, 5]])
    text = Batch(Inputs(ids), torch.cat([ids[:, 1:], torch.tensor([[2]])], 1))
    wanted = 0.0
    with torch.no_grad():
        for count in range(1, 5):
            for places in combinations(range(1, 5), count):
                values = ids.clone()
                values[0, list(places)] = HIDDEN
                logits = model(values)[0].log_softmax(-1)
                lost = -sum(float(logits[p, ids[0, p]]) for p in places)
                wanted += lost * 4 / count / comb(4, count) / 4
    many = MaskedDiffusion(plain, draws=600)
    found = many.judge(model, text)
    assert float(found.nats.sum()) == pytest.approx(wanted, rel=0.04)
    assert found.tokens.tolist() == [[IGNORED, 9, 1, 12, 5]]
    model, text, few = made(), batch(), MaskedDiffusion(plain)
    assert isinstance(few, HeldoutJudge)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        whole = few.judge(model, text)
    assert whole.spent.flops == counter.get_total_flops()
    alone = few.judge(model, text.take(slice(1, 2)))
    torch.testing.assert_close(alone.nats[0], whole.nats[1])


def test_padding_and_first_tokens_of_documents_are_never_hidden() -> None:
    text = batch()
    lengths, documents = torch.tensor([12, 5, 12]), torch.arange(12)[None].expand(3, -1) // 6
    own = Batch(text.inputs._replace(lengths=lengths, documents=documents), text.targets)
    can = weights_of(own) > 0
    assert not can[:, [0, 6]].any()
    assert not can[1, 5:].any()
    assert can[0, 1:6].all()


def test_a_causal_model_is_refused_and_one_that_fills_in_learns() -> None:
    objective, text = MaskedDiffusion(plain), batch()
    with pytest.raises(UsageError, match=r"--model\.causal false --model\.hides true"):
        objective(made(causal=True), text, At())
    model = made()
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    first = float(objective.judge(model, text).nats.sum())
    for step in range(60):
        optimizer.zero_grad()
        objective(model, text, At(step=step)).total.backward()
        optimizer.step()
    assert float(objective.judge(model, text).nats.sum()) < 0.7 * first
