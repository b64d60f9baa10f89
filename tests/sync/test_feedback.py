import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.sync.feedback import ErrorFeedback, Residuals

HERE = (0, 2)


def lossy(values: torch.Tensor) -> torch.Tensor:
    return (values * 4).round() / 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(-999, 999), min_size=3, max_size=3), min_size=1, max_size=8))
def test_nothing_is_lost_for_good_without_decay(rounds: list[list[int]]) -> None:
    residuals = Residuals(ErrorFeedback())
    deltas = [torch.tensor(values) / 1024 for values in rounds]
    sent = torch.zeros(3)
    for delta in deltas:
        a = residuals.compensate("w", delta, HERE)
        sent += lossy(a)
        residuals.commit({"w": a - lossy(a)}, HERE)
    assert torch.equal(sent + residuals.tensors["w"], torch.stack(deltas).sum(0))
    assert residuals.tensors["w"].abs().max() <= 1 / 8


def test_the_formula_of_the_decay() -> None:
    residuals = Residuals(ErrorFeedback(0.5))
    residuals.commit({"w": torch.tensor([0.5, -1.0])}, HERE)
    assert residuals.compensate("w", torch.tensor([1.0, 1.0]), HERE).tolist() == [1.25, 0.5]
    assert residuals.compensate("new", torch.tensor([1.0]), HERE).tolist() == [1.0]


def test_nothing_changes_but_by_commit() -> None:
    residuals = Residuals(ErrorFeedback(0.9))
    residuals.commit({"w": torch.ones(2)}, HERE)
    given_delta = torch.ones(2)
    residuals.compensate("w", given_delta, HERE).mul_(7)
    residuals.compensate("new", given_delta, HERE).mul_(7)
    assert residuals.tensors.keys() == {"w"}
    assert residuals.tensors["w"].tolist() == [1, 1]
    assert given_delta.tolist() == [1, 1]


@pytest.mark.parametrize("place", [(1, 2), (0, 3)])
def test_residuals_of_parts_go_when_the_place_changes(place: tuple[int, int]) -> None:
    residuals = Residuals(ErrorFeedback())
    residuals.commit({"w": torch.ones(4), "w@part": torch.ones(2)}, HERE)
    assert residuals.compensate("w@part", torch.ones(2), HERE).tolist() == [2, 2]
    assert residuals.compensate("w@part", torch.ones(1), place).tolist() == [1]
    assert residuals.compensate("w", torch.ones(4), place).tolist() == [2] * 4
    residuals.commit({"v": torch.ones(1)}, place)
    assert residuals.tensors.keys() == {"w", "v"}
    residuals.commit({}, HERE)
    assert residuals.compensate("w@part", torch.ones(2), HERE).tolist() == [1, 1]


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_bad_decay(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        ErrorFeedback(decay)
