"""The contrastive loss against its formula, and what it costs against torch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.objective import At
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.headless import Headless
from tests.flop_counting import CPU_ATTENTION


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_its_formula_and_costs_what_it_says(weighted: bool, tied: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(layers=1, width=16, heads=2, vocabulary=40, context=8, tied=tied))
    tokens, targets = torch.randint(40, (2, 8)), torch.randint(40, (2, 8))
    targets[0, 3] = targets[1, 1] = IGNORED
    weights = torch.rand(2, 8) if weighted else None
    batch, objective = Batch(Inputs(tokens), targets, weights), Headless(plain, temperature=0.5)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = objective(model, batch, At())
        loss.total.backward()
    hidden, matrix = model.read(batch.inputs).hidden, model.get_output_embeddings().weight
    seen = sorted({int(y) for y in targets.flatten() if y != IGNORED})
    total, count = torch.zeros(()), 0.0
    for row in range(2):
        for t in range(8):
            if targets[row, t] != IGNORED:
                scores = torch.stack([hidden[row, t] @ matrix[u] / 0.5 for u in seen])
                weight = 1.0 if weights is None else float(weights[row, t])
                total = total - weight * scores.log_softmax(0)[seen.index(int(targets[row, t]))]
                count += weight
    torch.testing.assert_close(loss.mean, total / count)
    assert loss.spent[MODEL].flops == counter.get_total_flops()
    assert objective.count(batch) == pytest.approx(count)
    assert int(loss.parts["negatives"]) == len(seen)
