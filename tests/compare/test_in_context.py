"""The synthetic tasks of `bench/in_context.py`: what is drawn is what is said, and no answer is better than the best one."""

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.flop_counting import CPU_ATTENTION

BENCH = str(Path(__file__).parents[2] / "bench")
sys.path.insert(0, BENCH)
tasks: Any = importlib.import_module("in_context_tasks")
bench: Any = importlib.import_module("in_context")
sys.path.remove(BENCH)

KINDS = [tasks.Regression(), tasks.Regression(pool=4), tasks.Classification(), tasks.MatchToSample()]
IDS = ["regression", "regression of a pool", "classification", "match_to_sample"]


def drawn(task: Any, count: int = 4000, seed: int = 3) -> Any:
    return task.draw(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", KINDS, ids=IDS)
def test_a_seed_gives_the_same_problems_of_the_shapes_that_are_said(task: Any) -> None:
    one, again, other = drawn(task, 5), drawn(task, 5), drawn(task, 5, 4)
    assert one.rows.shape == (5, task.length, task.features)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.rows, other.rows)
    assert task.loss(torch.zeros(5, task.outputs), one.answers).isfinite()


def test_ridge_is_the_posterior_mean_of_the_weights() -> None:
    """By a Gaussian posterior computed in the space of the answers, not of the weights."""
    task = tasks.Regression(examples=5, size=7, noise=0.5)
    found = drawn(task, 6)
    x, y = found.rows[:, :, :7].double(), found.rows[:, :-1, 7].double()
    for n in range(6):
        kernel = x[n] @ x[n].T / 7
        weights = torch.linalg.solve(kernel[:5, :5] + 0.25 * torch.eye(5, dtype=torch.float64), kernel[:5, 5])
        assert float(weights @ y[n]) == pytest.approx(float(found.best[n]), abs=1e-5)
    assert not found.rows[:, -1, 7].any()  # the query's answer is not shown


def test_with_few_weights_to_choose_from_the_best_answer_knows_them() -> None:
    task = tasks.Regression(pool=4, noise=0.1)
    found = drawn(task)
    assert task.best_loss(found) == pytest.approx(0.01, rel=0.1)  # the noise alone
    ridge = tasks.Regression(noise=0.1).best(found.rows[:, :, :8], found.rows[:, :-1, 8])
    assert task.best_loss(found) < float(task.loss(ridge, found.answers))


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1, 2.0])
@pytest.mark.parametrize("task", KINDS[:3], ids=IDS[:3])
def test_what_is_called_best_is_best_among_its_like(task: Any, scale: float) -> None:
    found = drawn(task, 20000)
    other = found.best * scale
    if scale in (0.9, 1.1):  # near the best the loss is flat
        assert task.best_loss(found) <= float(task.loss(other, found.answers)) + 1e-3
    else:
        assert task.best_loss(found) < float(task.loss(other, found.answers))


def test_bayes_is_calibrated_and_by_hand_for_one_problem() -> None:
    task = tasks.Classification(examples=4, size=3, labels=4, burst=2, spread=0.7)
    found = drawn(task, 20000)
    shares = found.best.softmax(-1)
    assert (shares > 0).sum(-1).max() == 2  # the labels in the context
    sure = shares.max(-1).values
    right = (shares.argmax(-1) == found.answers).float()
    for low in (0.5, 0.7, 0.9):
        among = (sure >= low) & (sure < low + 0.1)
        assert float(right[among].mean()) == pytest.approx(float(sure[among].mean()), abs=0.03)
    points, shown = found.rows[0, :, :3].double() * math.sqrt(1 + 0.49), found.rows[0, :-1, 3:]
    logs = {}
    for label in shown.sum(0).nonzero()[:, 0].tolist():
        own = points[:-1][shown[:, label] > 0]
        # the two points and the query have one centre: normal, of covariance (1 + spread² on the diagonal) / size
        covariance = (torch.ones(3, 3, dtype=torch.float64) + 0.49 * torch.eye(3, dtype=torch.float64)) / 3
        both = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
        two = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance[:2, :2])
        logs[label] = sum(
            both.log_prob(torch.cat((own[:, d], points[-1:, d]))) - two.log_prob(own[:, d]) for d in range(3)
        )
    one, two = logs
    assert float(logs[one] - logs[two]) == pytest.approx(float(found.best[0, one] - found.best[0, two]), abs=1e-4)


def test_the_nearest_point_of_the_circle_is_asked_for() -> None:
    task = tasks.MatchToSample(examples=5)
    found = drawn(task, 200)
    gaps = (found.rows[:, :-1] - found.rows[:, -1:]).norm(dim=-1)
    assert torch.equal(gaps.argmin(1), found.answers)
    assert len(found.answers.unique()) == 5
    assert task.best_loss(found) == 0


@pytest.mark.parametrize("name", bench.BACKBONES)
def test_the_operations_of_a_step_are_those_that_torch_counts(name: str) -> None:
    task = tasks.Classification(examples=4)
    model = bench.backbone(name, task, 64, 2)
    problems = drawn(task, 3)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        task.loss(model(problems.rows), problems.answers).backward()
    assert model.flops(3) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_run_that_is_chosen_is_so_by_other_problems_than_it_is_judged_by() -> None:
    def line(rate: float, choosing: float, judging: float) -> dict[str, Any]:
        excess = {"choosing": choosing, "judging": judging}
        return {"task": "regression", "backbone": "mlp", "rate": rate, "excess": excess}

    found = bench.chosen([line(1, 0.3, 0.1), line(2, 0.2, 0.4), line(3, math.nan, 0.0)])
    assert [one["rate"] for one in found] == [2]


def test_bursts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="not bursts of 2"):
        tasks.Classification(examples=5)
    with pytest.raises(ValueError, match="2 numbers"):
        tasks.MatchToSample(size=3)
