"""Held-out text is judged in the memory of a forward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shoestring.contract.batch import Batch, Inputs
from shoestring.model import ModelConfig, Transformer
from shoestring.train import evaluate

MODEL = ModelConfig(layers=3, width=16, heads=2, vocabulary=40, context=8)


class Two:
    """A source of two windows."""

    def batch(self, start: int, count: int) -> Batch:
        tokens = torch.arange(start, start + count)[:, None] * 3 + torch.arange(9)
        return Batch(Inputs(tokens[:, :-1]), tokens[:, 1:])

    def __len__(self) -> int:
        return 2


def test_what_a_backward_pass_would_need_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, kept = Transformer(MODEL), list[Tensor]()
    read = model.read

    def watched(*given: Any, **named: Any) -> Any:
        found = read(*given, **named)
        saved = found.hidden.grad_fn  # the graph is there, as in training
        assert saved is not None
        with pytest.raises(RuntimeError, match="keeps nothing"):
            found.hidden.sum().backward()
        kept.append(found.hidden)
        return found

    monkeypatch.setattr(model, "read", watched)
    judge = evaluate.Evaluator(Two(), torch.ones(40), sequences=2, rows=1, device="cpu", precision="float32")
    found = judge(model)
    assert len(kept) == 2
    batch = Two().batch(0, 2)
    monkeypatch.undo()
    logits = model(batch.inputs.values)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert found.loss == pytest.approx(plain.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_logits_are_made_of_few_places_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "LOGITS", 120)
    model, most = Transformer(MODEL), list[int]()
    judge = evaluate.Evaluator(Two(), torch.ones(40), sequences=2, rows=2, device="cpu", precision="float32")
    whole = torch.nn.functional.cross_entropy

    def noted(logits: Tensor, *given: Any, **named: Any) -> Tensor:
        most.append(logits.numel())
        return whole(logits, *given, **named)

    monkeypatch.setattr(evaluate.F, "cross_entropy", noted)
    judge(model)
    assert max(most) == 120
    assert len(most) == 6
