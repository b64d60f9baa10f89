"""Selections: losses and sketches of gradients by slow references, what is chosen, what is charged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shoestring.config import Choice
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.contract.objective import At
from shoestring.data.selection import Selection, projection_gradients, row_losses, sketched_gradients
from shoestring.data.selections.bmdal import kmeanspp, lcmd, maxdet
from shoestring.data.selections.colm import medoids, normalised, shares
from shoestring.data.selections.robust_active_distillation import robust_chances
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer

ROWS, PLACES, VOCABULARY = 12, 8, 20
TABLE: dict[str, dict[str, Any]] = {
    "hard_batches": {"delta": 3},
    "jest": {"reference": "elsewhere", "more": 3, "chunks": 2},
    "bmdal": {"more": 3, "width": 64},
    "llkd": {"teacher": "elsewhere", "more": 3},
    "robust_active_distillation": {"more": 3, "wrong": 0.2},
    "colm": {"more": 3, "keep": 100},
}


@pytest.fixture(scope="module")
def models() -> list[Transformer]:
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = Transformer(ModelConfig(vocabulary=VOCABULARY, layers=1, width=16, heads=2, context=PLACES))
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)  # far from the even distribution of first weights
        found.append(model)
    return found


@pytest.fixture(scope="module")
def batch() -> Batch:
    values = torch.randint(VOCABULARY, (ROWS, PLACES), generator=torch.Generator().manual_seed(3))
    targets = values.roll(-1, dims=1)
    targets[2, 5:] = IGNORED
    targets[7] = IGNORED
    return Batch(Inputs(values), targets)


def made(name: str, models: Sequence[Transformer], **more: Any) -> Selection:
    found: Selection = Choice.of("data", name, kind="selection", **{**TABLE[name], **more}).build(
        lambda place: models[1]
    )
    return found


def losses_by_hand(model: Transformer, batch: Batch) -> list[float]:
    found = []
    with torch.no_grad():
        logits = model.read(batch.inputs).logits()
    for row in range(batch.rows):
        own = [
            -float(logits[row, t].log_softmax(-1)[y]) for t, y in enumerate(batch.targets[row].tolist()) if y != IGNORED
        ]
        found.append(sum(own) / max(len(own), 1))
    return found


def test_losses_of_rows_are_those_of_a_plain_loop(models: list[Transformer], batch: Batch) -> None:
    losses, spent = row_losses(models[0], batch.split(5))
    assert losses.tolist() == pytest.approx(losses_by_hand(models[0], batch), abs=1e-5)
    assert losses[7] == 0
    assert spent.read == ROWS * PLACES
    assert spent.flops > 2 * ROWS * PLACES * 16 * VOCABULARY
    assert all(parameter.grad is None for parameter in models[0].parameters())


def test_sketches_have_the_products_of_the_gradients_of_the_head(models: list[Transformer], batch: Batch) -> None:
    model = models[0]
    exact = []
    for row in range(batch.rows):
        own = batch.take(slice(row, row + 1))
        reading = model.read(own.inputs)
        hidden = reading.hidden.detach()[0]
        shares = reading.logits().detach()[0].softmax(-1)
        total = torch.zeros(VOCABULARY, hidden.shape[1])
        counted = [(t, y) for t, y in enumerate(own.targets[0].tolist()) if y != IGNORED]
        for t, y in counted:
            residual = shares[t].clone()
            residual[y] -= 1
            total += torch.outer(residual, hidden[t]) / len(counted)
        exact.append(total.flatten())
    expected = torch.stack(exact) @ torch.stack(exact).T
    wide, spent = sketched_gradients(model, batch.split(5), 8192, seed=0)
    scale = float(expected.diagonal().max())
    assert ((wide @ wide.T - expected).abs() / scale).max() < 0.1
    again, _ = sketched_gradients(model, [batch], 8192, seed=0)
    assert torch.allclose(wide, again, atol=1e-4)
    assert spent.flops > 2 * ROWS * PLACES * 8192 * VOCABULARY


@pytest.mark.parametrize("name", TABLE)
def test_as_many_rows_as_asked_each_once_and_the_same_each_time(
    name: str, models: list[Transformer], batch: Batch
) -> None:
    selection = made(name, models)
    assert selection.more == 3
    turns = [selection.choose(models[0], batch.split(5), 4, At(step=7, seed=1)) for _ in range(2)]
    rows = turns[0].rows.tolist()
    assert rows == sorted(set(rows)) == turns[1].rows.tolist()
    assert len(rows) == 4
    assert 0 <= rows[0] <= rows[-1] < ROWS
    assert turns[0].spent.flops > 0
    assert turns[0].spent.tokens == 0
    one = selection.choose(models[0], [batch], 4, At(step=7, seed=1))  # in one piece
    assert one.rows.tolist() == rows


def shares_by_hand(model: Transformer, batch: Batch) -> list[list[Tensor]]:
    with torch.no_grad():
        shares = model.read(batch.inputs).logits().softmax(-1)
    return [[shares[r, t] for t, y in enumerate(batch.targets[r].tolist()) if y != IGNORED] for r in range(batch.rows)]


def test_a_teacher_that_is_sure_teaches_what_the_model_is_not_sure_of(models: list[Transformer], batch: Batch) -> None:
    sure = [sum(float(p.max()) for p in row) / max(len(row), 1) for row in shares_by_hand(models[1], batch)]
    unsure = [
        sum(float(-(q * q.log()).sum()) for q in row) / max(len(row), 1) / np.log(VOCABULARY)
        for row in shares_by_hand(models[0], batch)
    ]
    first = [i for i in range(ROWS) if sure[i] >= sum(sure) / ROWS - 1e-7 and unsure[i] >= sum(unsure) / ROWS - 1e-7]
    order = sorted(range(ROWS), key=lambda i: (i not in first, -sure[i] * unsure[i]))
    chosen = made("llkd", models).choose(models[0], batch.split(5), 4, At())
    assert chosen.rows.tolist() == sorted(order[:4])
    assert chosen.spent.read == 2 * ROWS * PLACES


def test_the_chances_solve_the_game_against_a_teacher_that_is_wrong_where_it_hurts() -> None:
    from itertools import combinations

    from scipy.optimize import linprog

    generator = np.random.default_rng(0)
    for wrong in (0, 1, 2):
        gains = generator.uniform(0.1, 1.0, 7)
        # max v: for each set of wrong rows, the gain of the others is v at least
        sets = list(combinations(range(7), wrong))
        rows = [[*(-(g if i not in gone else 0.0) for i, g in enumerate(gains)), 1.0] for gone in sets]
        best = linprog(
            [0.0] * 7 + [-1.0], A_ub=rows, b_ub=[0.0] * len(rows), A_eq=[[1.0] * 7 + [0.0]], b_eq=[1.0],
            bounds=[(0, 1)] * 7 + [(None, None)],
        )  # fmt: skip
        p = robust_chances(torch.tensor(gains), float(wrong)).double().numpy()
        assert p.sum() == pytest.approx(1)
        worst = min(sum(p[i] * gains[i] for i in range(7) if i not in gone) for gone in sets)
        assert worst == pytest.approx(-best.fun, rel=1e-5)


def test_rows_that_are_asked_about_are_those_with_a_chance(models: list[Transformer], batch: Batch) -> None:
    margins = [
        sum(float(q.topk(2).values[0] - q.topk(2).values[1]) for q in row) / max(len(row), 1)
        for row in shares_by_hand(models[0], batch)
    ]
    chances = robust_chances(torch.tensor([1 - m for m in margins]), 0.2 * ROWS)
    counts = np.zeros(ROWS)
    one = made("robust_active_distillation", models)
    for step in range(300):
        counts[one.choose(models[0], [batch], 1, At(step=step)).rows] += 1
    assert np.abs(counts / 300 - chances.numpy()).max() < 0.1


def test_the_hardest_batch_is_taken(models: list[Transformer], batch: Batch) -> None:
    losses = losses_by_hand(models[0], batch)
    means = [sum(losses[start : start + 4]) / 4 for start in range(0, ROWS, 4)]
    hardest = means.index(max(means))
    chosen = made("hard_batches", models).choose(models[0], batch.split(5), 4, At())
    assert chosen.rows.tolist() == list(range(hardest * 4, hardest * 4 + 4))


def test_sharp_draws_take_what_the_reference_has_learnt_and_the_model_has_not(
    models: list[Transformer], batch: Batch
) -> None:
    gap = np.array(losses_by_hand(models[0], batch)) - np.array(losses_by_hand(models[1], batch))
    chosen = made("jest", models, sharpness=1e5).choose(models[0], batch.split(5), 4, At())
    assert chosen.rows.tolist() == sorted(np.argsort(-gap)[:4].tolist())
    alone, _ = row_losses(models[0], [batch])
    both, spent = row_losses(models[1], [batch])
    assert chosen.spent.read == 2 * spent.read
    counts = np.zeros(ROWS)
    for step in range(400):
        counts[made("jest", models, sharpness=2.0).choose(models[0], [batch], 1, At(step=step)).rows] += 1
    expected = torch.softmax(2.0 * (alone - both), 0).numpy()
    assert np.abs(counts / 400 - expected).max() < 0.1


def lcmd_by_hand(features: Tensor, count: int) -> list[int]:
    points = features.numpy()
    chosen = [int(np.argmax((points**2).sum(1)))]
    while len(chosen) < count:
        clusters: dict[int, list[tuple[float, int]]] = {center: [] for center in chosen}
        for place, point in enumerate(points):
            if place not in chosen:
                distances = [float(((point - points[center]) ** 2).sum()) for center in chosen]
                nearest = int(np.argmin(distances))
                clusters[chosen[nearest]].append((distances[nearest], place))
        largest = max(clusters.values(), key=lambda own: sum(distance for distance, _ in own))
        chosen.append(max(largest)[1])
    return chosen


def maxdet_by_hand(features: Tensor, count: int) -> list[int]:
    kernel = (features @ features.T).numpy()
    chosen: list[int] = []
    for _ in range(count):
        best = max(
            (place for place in range(len(kernel)) if place not in chosen),
            key=lambda place: np.linalg.det(kernel[np.ix_([*chosen, place], [*chosen, place])]),
        )
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_rules_of_selection_are_those_of_slow_references(seed: int) -> None:
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert lcmd(features, 7) == lcmd_by_hand(features, 7)
    assert maxdet(features, 5) == maxdet_by_hand(features, 5)


def test_copies_do_not_stop_a_selection() -> None:
    features = torch.ones(6, 3, dtype=torch.float64)
    for chosen in (lcmd(features, 6), maxdet(features, 6), kmeanspp(features, 6, torch.Generator().manual_seed(0))):
        assert sorted(chosen) == list(range(6))


def test_draws_by_distance_seldom_take_two_of_a_kind() -> None:
    kinds = torch.eye(4, dtype=torch.float64).repeat_interleave(10, dim=0)
    features = kinds + 0.01 * torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    for seed in range(10):
        chosen = kmeanspp(features, 4, torch.Generator().manual_seed(seed))
        assert {place // 10 for place in chosen} == {0, 1, 2, 3}


# ---- CoLM


def test_gradients_in_the_matrix_before_the_head_are_those_of_autograd(models: list[Transformer], batch: Batch) -> None:
    model = models[0]
    found, spent = projection_gradients(model, batch.split(5))
    assert all(parameter.grad is None for parameter in model.parameters())
    for row in (0, 2, 7):
        own = batch.take(slice(row, row + 1))
        reading = model.read(own.inputs)
        matrix = torch.eye(16, requires_grad=True)
        logits = reading.head.logits(reading.hidden.detach()[0] @ matrix.T)
        counted = own.targets[0] != IGNORED
        if counted.any():
            loss = torch.nn.functional.cross_entropy(logits[counted], own.targets[0][counted])
            (matrix.grad,) = torch.autograd.grad(loss, matrix)
        expected = torch.zeros(16, 16) if matrix.grad is None else matrix.grad
        assert torch.allclose(found[row].view(16, 16), expected, atol=1e-6)
    assert spent.flops > row_losses(model, [batch])[1].flops


def medoids_by_hand(features: Tensor, count: int) -> list[int]:
    points, chosen = features.numpy(), list[int]()

    def total(centres: list[int]) -> float:
        return sum(min(float(np.abs(point - points[centre]).sum()) for centre in centres) for point in points)

    while len(chosen) < count:
        chosen.append(
            min((row for row in range(len(points)) if row not in chosen), key=lambda row: total([*chosen, row]))
        )
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_medoids_are_those_of_a_slow_reference(seed: int) -> None:
    features = torch.randn(14, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert medoids(features, 6) == medoids_by_hand(features, 6)
    assert sorted(medoids(torch.ones(4, 2), 4)) == [0, 1, 2, 3]


def test_a_small_source_is_taken_whole_and_the_others_by_their_size(models: list[Transformer], batch: Batch) -> None:
    assert shares(torch.tensor([0] * 8 + [1] * 2 + [2] * 2), 6) == {1: 2, 2: 2, 0: 2}
    assert shares(torch.tensor([0] * 9 + [1] * 7), 5) == {0: 3, 1: 2}
    assert shares(torch.tensor([4] * 5), 2) == {4: 2}
    domains = torch.tensor([0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 1])
    several = Batch(batch.inputs, batch.targets, None, {"domain": domains})
    chosen = made("colm", models).choose(models[0], several.split(5), 6, At()).rows.tolist()
    assert {3, 6, 11} <= set(chosen)
    assert len(chosen) == 6


def test_entries_are_scaled_as_adam_would_and_the_strongest_kept() -> None:
    gradients = torch.tensor([[1.0, 10.0, -2.0, 0.0], [1.0, -10.0, -2.0, 0.0], [4.0, 10.0, -2.0, 0.0]])
    root = torch.tensor([(18 / 3) ** 0.5, 10.0, 2.0])
    expected = gradients[:, :3] / root
    assert torch.allclose(normalised(gradients, 2), expected[:, [0, 2]])


def test_a_coreset_is_nearer_to_the_large_batch_than_a_random_one(models: list[Transformer], batch: Batch) -> None:
    features = normalised(projection_gradients(models[0], [batch])[0], 100)
    chosen = made("colm", models).choose(models[0], [batch], 4, At()).rows

    def gap(rows: Tensor) -> float:
        return float(torch.cdist(features, features[rows], p=1).min(dim=1).values.sum())

    generator = torch.Generator().manual_seed(0)
    others = [gap(torch.randperm(ROWS, generator=generator)[:4]) for _ in range(20)]
    assert gap(chosen) < min(others) + 1e-6
