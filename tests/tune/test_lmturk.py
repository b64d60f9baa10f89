"""Workers that label within a number of queries: whom, how their labels join, and a student that learns from them."""

import math
from pathlib import Path

import pytest
import torch

from shoestring.contract.edit import Evidence
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.tune.edits.lora import LoRA
from shoestring.tune.lmturk import LMTurk, PromptedWorker, together, uncertainty
from shoestring.tune.pattern_exploiting import PatternExploitingTraining
from tests.tune.making import folder_of, opened
from tests.tune.test_pattern_exploiting import BAD, GOOD, PATTERNS

POOL = GOOD[1:] + BAD[1:]
TRUTH = torch.tensor([0] * 4 + [1] * 4)


def fresh(path: Path) -> LanguageModule:
    made = opened(folder_of("llama", path))
    return LoRA(rank=4).apply(made, LoRA(rank=4).decide(made, Evidence()))


@pytest.fixture
def worker(tmp_path: Path) -> LanguageModule:
    """One that knows the task."""
    model = fresh(tmp_path / "worker")
    pet = PatternExploitingTraining(model, PATTERNS[:1], steps=25, batch=4, lr=5e-3)
    pet.fit([GOOD[0], BAD[0]], [0, 1], POOL)
    return model


def test_labels_join_by_quality() -> None:
    said = torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]], [[0.2, 0.8]]])
    found = together(said, [0.5, 0.25, 0.0], votes=False)
    assert found.tolist() == [[pytest.approx((0.45 + 0.1) / 0.75), pytest.approx((0.05 + 0.15) / 0.75)]]
    assert together(said, [0.5, 0.25, 0.0], votes=True).tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3)]]
    assert together(said, [0.0, 0.0, 0.0], votes=True).tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3)]]


def test_unsure_is_what_the_formulas_say() -> None:
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    entropy = [-sum(p * math.log(p) for p in row if p) for row in shares.tolist()]
    assert uncertainty(shares, "entropy").tolist() == pytest.approx(entropy, abs=1e-5)
    assert uncertainty(shares, "margin").tolist() == pytest.approx([0.0, -0.1, -0.85])
    assert uncertainty(shares, "confidence").tolist() == pytest.approx([-0.5, -0.4, -0.9])


@pytest.mark.parametrize(("acquisition", "aggregation"), [("entropy", "probabilities"), ("random", "best")])
def test_a_student_learns_from_what_it_asked(
    worker: LanguageModule, tmp_path: Path, acquisition: str, aggregation: str
) -> None:
    silent = fresh(tmp_path / "silent")  # knows nothing
    crowd = [PromptedWorker(silent, PATTERNS[1]), PromptedWorker(worker, PATTERNS[0])]
    turk = LMTurk(
        crowd,
        fresh(tmp_path / "student"),
        PATTERNS[2],
        queries=13,
        rounds=2,
        acquisition=acquisition,  # type: ignore[arg-type]
        aggregation=aggregation,  # type: ignore[arg-type]
        steps=25,
        batch=4,
        lr=5e-3,
    )
    made = turk.fit([GOOD[0], BAD[0]], [0, 1], POOL)
    asked = 1 if aggregation == "best" else 2
    assert made.quality[1] == 1.0
    assert made.queries == asked * len(made.chosen) == asked * min(13 // asked, 8)
    assert len(set(made.chosen)) == len(made.chosen)
    assert made.teachers.read == 2 * (4 + made.queries)  # of each text, a row for each class
    assert made.teachers.flops > 0
    assert made.student.flops > 0
    if aggregation == "best":
        assert made.labels.argmax(1).tolist() == TRUTH[list(made.chosen)].tolist()
        assert float((turk.classify(POOL).argmax(1) == TRUTH).float().mean()) >= 0.9


def test_later_rounds_ask_about_what_the_student_is_least_sure_of(
    worker: LanguageModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turk = LMTurk(
        [PromptedWorker(worker, PATTERNS[0])], fresh(tmp_path / "student"), PATTERNS[2], queries=4, rounds=2, steps=1
    )
    shares = torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.8, 0.2], [0.5, 0.5], [0.99, 0.01], [0.7, 0.3]])
    monkeypatch.setattr(turk, "classify", lambda texts: shares[: len(texts)])
    made = turk.fit([GOOD[0], BAD[0]], [0, 1], POOL)
    left = [place for place in range(8) if place not in made.chosen[:2]]
    assert made.chosen[2:] == (left[3], left[1])


def test_what_does_not_fit_is_said(worker: LanguageModule) -> None:
    with pytest.raises(UsageError, match="a worker or more"):
        LMTurk([], worker, PATTERNS[0])
    turk = LMTurk([PromptedWorker(worker, PATTERNS[0])] * 3, worker, PATTERNS[0], queries=5, rounds=2)
    with pytest.raises(UsageError, match="5 queries of 3 workers label 1 of the 8 texts"):
        turk.fit([GOOD[0]], [0], POOL)
    with pytest.raises(UsageError, match="a label from 0 to 1"):
        turk.fit([GOOD[0]], [2], POOL)
