"""Learning from a teacher: the loss is its formula, whatever the size of a block, and its cost is what was computed."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.objective import At, Taught
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective import teachers
from shoestring.objective.cross_entropy import plain
from shoestring.objective.distillation import Distillation
from shoestring.objective.teachers import TEACHER
from tests.flop_counting import CPU_ATTENTION


def made(seed: int, width: int = 16, vocabulary: int = 30) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(layers=1, width=width, heads=2, vocabulary=vocabulary, context=12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=0.3)
    return model


def batch(weighted: bool) -> Batch:
    torch.manual_seed(5)
    ids = torch.randint(30, (3, 10))
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORED
    return Batch(Inputs(ids), targets, torch.rand(3, 10) if weighted else None)


def slowly(student: Transformer, teacher: Transformer, of: Batch, weight: float, tau: float, forward: bool) -> Tensor:
    total, count = torch.zeros(()), 0.0
    ours, theirs = student(of.inputs.values), teacher(of.inputs.values)
    for row in range(3):
        for place in range(10):
            if of.targets[row, place] == IGNORED:
                continue
            p, q = (theirs[row, place] / tau).softmax(0), (ours[row, place] / tau).softmax(0)
            if not forward:
                p, q = q, p
            divergence = (p * (p / q).log()).sum()
            entropy = F.cross_entropy(ours[row, place], of.targets[row, place])
            counts = 1.0 if of.weights is None else float(of.weights[row, place])
            total = total + counts * (weight * tau**2 * divergence + (1 - weight) * entropy)
            count += counts
    return total / count


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("weight", "tau", "divergence"), [(1.0, 1.0, "forward"), (0.6, 2.0, "forward"), (0.7, 1.5, "reverse")]
)
def test_loss_and_gradients_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, weighted: bool, weight: float, tau: float, divergence: str
) -> None:
    monkeypatch.setattr(teachers, "LOGITS", 7 * 30)  # blocks of seven places
    student, teacher, of = made(1), made(2, width=32), batch(weighted)
    objective = Distillation(plain, weight=weight, temperature=tau, divergence=divergence)  # type: ignore[arg-type]
    objective.learn_from(teacher.requires_grad_(False))
    loss = objective(student, of, At())
    loss.mean.backward()
    found = [parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None]
    student.zero_grad()
    wanted = slowly(student, teacher, of, weight, tau, divergence == "forward")
    wanted.backward()
    torch.testing.assert_close(loss.mean, wanted, atol=1e-5, rtol=1e-5)
    for one, other in zip(found, (p.grad for p in student.parameters()), strict=True):
        assert other is not None
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert objective.count(of) == pytest.approx(27 if of.weights is None else float(of.weights[:, :9].sum()))


def test_its_cost_is_what_was_computed() -> None:
    student, teacher, of = made(1), made(2, width=32).requires_grad_(False), batch(False)
    objective = Distillation(plain)
    objective.learn_from(teacher)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = objective(student, of, At())
        loss.mean.backward()
    stated = loss.spent[MODEL].flops + loss.spent[TEACHER].flops
    assert stated == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_a_model_that_is_its_own_teacher_has_nothing_to_learn() -> None:
    model, of = made(1), batch(False)
    objective = Distillation(plain)
    objective.learn_from(model)
    loss = objective(model, of, At())
    loss.mean.backward()
    assert float(loss.mean.detach()) == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in model.parameters())


def test_it_needs_a_teacher_of_the_same_tokens() -> None:
    objective = Distillation(plain)
    assert isinstance(objective, Taught)
    with pytest.raises(UsageError, match="has no teacher"):
        objective(made(1), batch(False), At())
    objective.learn_from(made(2, vocabulary=31))
    with pytest.raises(UsageError, match="31 tokens and the model 30"):
        objective(made(1), batch(False), At())
