"""Minifinetuning beside a slow reference, and what it asks of a model that is right already."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.contract.adapter import without_adapters
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.contract.objective import At
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.minifinetuning import TEACHER, Minifinetuning
from shoestring.tune.edits.lora import LoRA


@settings(deadline=None)
@given(seed=st.integers(0, 500), margin=st.floats(0, 0.9), sharp=st.floats(0.1, 8))
def test_the_true_token_leads_by_the_margin_and_no_more_is_changed(seed: int, margin: float, sharp: float) -> None:
    torch.manual_seed(seed)
    p, y = (torch.randn(4, 6, dtype=torch.float64) * sharp).softmax(-1), torch.randint(6, (4,))
    q = Minifinetuning(plain, margin=margin).corrected(p, y)
    for row in range(4):
        true = int(y[row])
        others = [float(q[row, j]) for j in range(6) if j != true]
        assert float(q[row].sum()) == pytest.approx(1)
        lead = float(p[row, true]) - max(float(p[row, j]) for j in range(6) if j != true)
        if lead >= margin:
            assert torch.allclose(q[row], p[row])
        else:
            assert float(q[row, true]) - max(others) == pytest.approx(margin)
        ratios = [float(q[row, j] / p[row, j]) for j in range(6) if j != true]
        assert max(ratios) == pytest.approx(min(ratios))  # the rest keep their proportions


def small() -> Transformer:
    torch.manual_seed(1)
    return Transformer(ModelConfig(layers=2, width=32, heads=4, vocabulary=50, context=24))


def batch() -> Batch:
    tokens = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(3))
    targets = tokens[:, 1:].clone()
    targets[0, :5] = IGNORED
    return Batch(Inputs(tokens[:, :-1]), targets)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_that_of_its_formula(weighted: bool) -> None:
    model, edit, given = small(), LoRA(rank=2), batch()
    model = edit.apply(model, edit.decide(model, Evidence()))  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    weights = torch.rand(2, 12) if weighted else None
    given = Batch(given.inputs, given.targets, weights)
    objective = Minifinetuning(plain, margin=0.3)
    found = objective(model, given, At())
    with torch.no_grad():
        now = model(given.inputs.values).log_softmax(-1)
        with without_adapters(model):
            before = model(given.inputs.values).softmax(-1)
    total = counted = 0.0
    for row in range(2):
        for place in range(12):
            y = int(given.targets[row, place])
            if y == IGNORED:
                continue
            p = before[row, place]
            m = max(float(p[j]) for j in range(50) if j != y)
            a = min(1.0, 0.7 / (1 + m - float(p[y])))
            q = a * p
            q[y] += 1 - a
            weight = 1.0 if weights is None else float(weights[row, place])
            total += weight * float((q * (q.log() - now[row, place])).sum())
            counted += weight
    assert float(found.mean.detach()) == pytest.approx(total / counted, rel=1e-4)
    assert objective.count(given) == pytest.approx(counted)
    assert found.spent[TEACHER].read == 24
    assert found.spent[TEACHER].flops > 0


def test_a_model_tuned_in_full_is_refused() -> None:
    with pytest.raises(UsageError, match="give --edits lora"):
        Minifinetuning(plain)(small(), batch(), At())
