"""DiDi-Instruct: its loss against a slow one, its cost against torch's counter, and a student that follows what it is judged by."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.config import Choice
from shoestring.contract.batch import HIDDEN, Batch, Inputs
from shoestring.contract.edit import Evidence
from shoestring.contract.objective import At, HeldoutJudge, Taught
from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer
from shoestring.objective.cross_entropy import plain
from shoestring.objective.didi_instruct import DiDiInstruct
from tests.flop_counting import CPU_ATTENTION


def filler(seed: int, width: int = 16) -> Transformer:
    torch.manual_seed(seed)
    sizes = ModelConfig(layers=1, width=width, heads=2, vocabulary=8, context=12, causal=False, hides=True)
    model = Transformer(sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def made() -> tuple[DiDiInstruct, Transformer, Transformer]:
    edit = Choice.of("surgery", "detector", kind="edit").build()
    student, teacher = filler(1), filler(1).requires_grad_(False).eval()
    student = edit.apply(student, edit.decide(student, Evidence(seed=2)))
    with torch.no_grad():
        student.detector.output.weight.normal_()
    objective = DiDiInstruct(plain, group=3)
    objective.learn_from(teacher)
    return objective, student, teacher


def batch(rows: int = 7) -> Batch:
    torch.manual_seed(5)
    ids = torch.randint(8, (rows, 13))
    return Batch(Inputs(ids[:, :-1]), ids[:, 1:])


def test_the_loss_is_that_of_a_slow_one_and_costs_what_it_says() -> None:
    objective, student, teacher = made()
    assert isinstance(objective, Taught)
    assert isinstance(objective, HeldoutJudge)
    text, at = batch(), At(step=4, seed=3)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = objective(student, text, at)
        loss.total.backward()
    assert sum(one.flops for one in loss.spent.values()) == counter.get_total_flops()
    # the same draws again: what is filled late, the tokens, and what is hidden again
    chance = at.generator()
    filled = objective.filled(student, text.inputs.values, chance)
    shares = torch.rand((6, 1), generator=chance)
    hides = torch.rand((6, 12), generator=chance) < shares
    hides[:, 0] = False
    late = at.generator()
    late_places = torch.rand((6, 12), generator=late) < torch.rand((6, 1), generator=late)
    likelihoods, rewards, judged, count = [], [], torch.zeros(()), int(hides.sum())
    for row in range(6):
        assert filled.texts[row, 0] == text.inputs.values[row // 3, 0]
        first = torch.full((12,), HIDDEN)
        first[0] = filled.texts[row, 0]
        second = torch.where(late_places[row], first, filled.texts[row])
        second[0] = first[0]
        total = torch.zeros(())
        for place in range(1, 12):
            seen = second if late_places[row, place] else first
            total = total + student(seen[None])[0, place].log_softmax(-1)[filled.texts[row, place]]
        likelihoods.append(total / 11)
        told = []
        for tokens, sign in ((filled.texts[row], 1), (text.inputs.values[row], -1)):
            states = teacher.read(Inputs(tokens.masked_fill(hides[row], HIDDEN)[None])).hidden[0]
            logits = student.detector(states)[hides[row]]
            judged = judged - ((-sign * logits).sigmoid().log()).sum() / count
            told.append(logits)
        rewards.append(float(told[0].detach().mean()) if len(told[0]) else 0.0)
    policy = torch.zeros(())
    for group in (rewards[:3], rewards[3:]):
        mean = sum(group) / 3
        deviation = (sum((one - mean) ** 2 for one in group) / 3) ** 0.5
        for one in group:
            policy = policy - (one - mean) / (deviation + 1e-6) * likelihoods[rewards.index(one)] / 6
    torch.testing.assert_close(loss.mean, policy + judged, rtol=1e-4, atol=1e-4)


def test_a_student_comes_to_write_what_is_rewarded() -> None:
    """Rewarded is the share of token 3 in a text."""
    objective, student, _ = made()
    text = batch(12)

    def count_threes() -> float:
        with torch.no_grad():
            return float(
                (objective.filled(student, text.inputs.values, At(step=99).generator()).texts == 3).float().mean()
            )

    before = count_threes()
    optimizer = torch.optim.Adam([p for n, p in student.named_parameters() if "detector" not in n], 0.01)
    for step in range(80):
        filled = objective.filled(student, text.inputs.values, At(step=step).generator())
        own = objective.advantages((filled.texts == 3).float().mean(1))
        optimizer.zero_grad()
        (-(own * filled.likelihood).mean()).backward()
        optimizer.step()
    assert count_threes() > before + 0.3


def test_what_does_not_fit_is_refused() -> None:
    objective, student, _ = made()
    with pytest.raises(UsageError, match="3 rows or more"):
        objective(student, batch(2), At())
    with pytest.raises(UsageError, match="fills in no hidden tokens"):
        objective.learn_from(Transformer(ModelConfig(layers=1, width=16, heads=2, vocabulary=8, context=12)))
    objective.learn_from(filler(3, width=24))
    with pytest.raises(UsageError, match="begins as the teacher"):
        objective(student, batch(), At())
