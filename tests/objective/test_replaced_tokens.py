"""Replaced-token detection: every generator through one table, the loss against its formula, its cost against torch's counter."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import MODEL
from shoestring.config import Choice
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.contract.objective import At, HeldoutJudge
from shoestring.errors import UsageError
from shoestring.method import methods
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.generators.ngram_table import NgramTable
from shoestring.objective.replaced_tokens import ReplacedTokens
from shoestring.objective.teachers import TEACHER
from tests.flop_counting import CPU_ATTENTION

OPTIONS: dict[str, dict[str, Any]] = {"masked_model": {"place": "small"}, "ngram_table": {"order": 2}}


def encoder(hides: bool = False, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(layers=1, width=16, heads=2, vocabulary=12, context=32, causal=False, hides=hides))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def with_detector(model: Transformer) -> Transformer:
    edit = Choice.of("surgery", "detector", kind="edit").build()
    made: Transformer = edit.apply(model, edit.decide(model, Evidence(seed=1)))
    with torch.no_grad():
        made.detector.output.weight.normal_()  # type: ignore[union-attr, operator]
    return made


def batch() -> Batch:
    torch.manual_seed(4)
    ids = torch.randint(12, (4, 25))
    targets = ids[:, 1:].clone()
    targets[2, 5] = IGNORED
    return Batch(Inputs(ids[:, :-1]), targets)


@pytest.mark.parametrize("name", [card.name for card in methods("objective", "generator")])
def test_every_generator_makes_the_loss_of_the_formula_at_the_cost_it_says(name: str) -> None:
    generator = Choice.of("objective", name, kind="generator", **OPTIONS.get(name, {}))
    objective, model, text, at = (
        ReplacedTokens(plain, generator=generator, share=0.4),
        with_detector(encoder()),
        batch(),
        At(),
    )
    if objective.teachers:
        objective.learn_from(encoder(hides=True, seed=9).eval().requires_grad_(False))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = objective(model, text, at)
        loss.total.backward()
    assert sum(charge.flops for charge in loss.spent.values()) == counter.get_total_flops()
    assert (TEACHER in loss.spent) == bool(objective.teachers)
    changed, _ = objective.changed(text, at.generator())
    assert torch.equal(changed, objective.changed(text, at.generator())[0])
    replaced = changed != text.inputs.values
    assert not replaced[:, 0].any()
    assert not replaced[2, 6]
    assert 0.1 < replaced.float().mean() < 0.5
    total, count = torch.zeros(()), 0
    hidden = model.read(Inputs(changed)).hidden
    for row in range(4):
        for place in range(1, 24):
            if text.targets[row, place - 1] != IGNORED:
                score = model.detector(hidden[row, place])  # type: ignore[operator]
                total = total - (score.sigmoid() if replaced[row, place] else (-score).sigmoid()).log()
                count += 1
    torch.testing.assert_close(loss.mean, total / count)
    assert objective.count(text) == count
    assert isinstance(objective, HeldoutJudge)
    judged = objective.judge(model, text)
    assert (judged.tokens != IGNORED).sum() == count


def test_a_table_of_pairs_draws_what_followed_in_the_batch() -> None:
    values = torch.tensor([[1, 2, 1, 3, 1, 2, 5, 1], [7, 1, 2, 8, 6, 9, 4, 0]])
    chosen = torch.zeros(2, 8, dtype=torch.bool)
    chosen[0, 1] = chosen[0, 7] = True
    found: list[Counter[int]] = [Counter(), Counter()]
    for seed in range(400):
        tokens, _ = NgramTable(order=2).replace(Inputs(values), chosen, torch.Generator().manual_seed(seed))
        for place, token in enumerate(tokens.tolist()):
            found[place][token] += 1
    assert set(found[0]) == {2, 3}  # after 1 there stand 2, 3, 2 and 2
    assert found[0][2] == pytest.approx(300, abs=40)
    assert len(found[1]) == 10  # nothing else follows 5: any token of the batch


def test_it_learns_to_tell_and_what_is_missing_is_named() -> None:
    objective, text, model = ReplacedTokens(plain, share=0.3), batch(), with_detector(encoder())
    text = Batch(Inputs(torch.arange(24).expand(4, -1) % 12), text.targets)
    with pytest.raises(UsageError, match="--edits detector"):
        objective(encoder(), text, At())
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    first = float(objective.judge(model, text).nats.sum())
    for step in range(60):
        optimizer.zero_grad()
        objective(model, text, At(step=step)).total.backward()
        optimizer.step()
    assert float(objective.judge(model, text).nats.sum()) < 0.4 * first
    assert MODEL in objective(model, text, At()).spent
