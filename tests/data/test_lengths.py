"""Lengths of rows: the same tokens in shorter rows, positions begun anew, schedules as they are written."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.config import Choice
from shoestring.contract.batch import IGNORED, Batch, Inputs
from shoestring.data import TokenStore, Windows
from shoestring.data.length import Shaped, cut
from shoestring.data.stream import stream_of
from shoestring.errors import UsageError

CONTEXT = 32
TABLE: dict[str, dict[str, Any]] = {
    "length_stages": {"stages": (8, 16, 32), "until": (0.25, 0.5)},
    "length_cycle": {"shapes": (8, 32), "each": 2},
}


def made(name: str, **options: Any) -> Any:
    return Choice.of("data", name, kind="length", **(options or TABLE[name])).build(CONTEXT)


def isolated(shuffle: bool = True) -> Windows:
    documents = [[number % 90 + 1] * (number * 7 % 23) for number in range(60)]
    return Windows(TokenStore.of(documents, 0), CONTEXT, packing="isolated", shuffle=shuffle)


@given(length=st.sampled_from([1, 2, 4, 8, 16]), start=st.integers(0, 15))
def test_rows_that_are_cut_are_the_windows_of_that_length(length: int, start: int) -> None:
    whole = isolated(shuffle=False)
    short = Windows(whole.store, length, packing="isolated", shuffle=False)
    found, expected = cut(whole.batch(start, 3), length), short.batch(start * CONTEXT // length, 3 * CONTEXT // length)
    assert torch.equal(found.inputs.values, expected.inputs.values)
    assert torch.equal(found.targets, expected.targets)
    assert found.inputs.positions is not None
    assert expected.inputs.positions is not None
    assert torch.equal(found.inputs.positions, expected.inputs.positions)
    for one, other in zip(found.inputs.documents, expected.inputs.documents, strict=True):  # type: ignore[arg-type]
        assert ((one[:, None] == one) == (other[:, None] == other)).all()  # which see each other


def test_weights_and_extra_go_with_their_rows() -> None:
    values = torch.arange(16).reshape(2, 8)
    extra = {"domain": torch.tensor([3, 5]), "score": values.float()}
    found = cut(Batch(Inputs(values), values + 1, values.float(), extra), 4)
    assert found.inputs.values.tolist() == values.reshape(4, 4).tolist()
    assert found.weights is not None
    assert found.weights.tolist() == values.float().reshape(4, 4).tolist()
    assert found.extra["domain"].tolist() == [3, 3, 5, 5]
    assert found.extra["score"].shape == (4, 4)
    with pytest.raises(UsageError, match="cannot be cut"):
        cut(Batch(Inputs(values), values), 3)
    with pytest.raises(UsageError, match="cannot be cut"):
        cut(Batch(Inputs(values, lengths=torch.tensor([8, 8])), values), 4)


@pytest.mark.parametrize("name", TABLE)
def test_a_step_has_as_many_tokens_at_any_length_and_what_is_read_is_the_same(name: str) -> None:
    plain, shaped = isolated(), Shaped(stream_of(isolated()), made(name), 4)
    lengths = set()
    for step in range(20):
        batch, whole = shaped.take(step * 4, 4, step / 20), plain.batch(step * 4, 4)
        assert torch.equal(batch.inputs.values.flatten(), whole.inputs.values.flatten())
        assert batch.tokens == int((whole.targets != IGNORED).sum())
        lengths.add(batch.inputs.length)
    assert lengths == set(made(name).lengths())
    assert shaped.state() is None


def test_stages_end_where_they_are_said_to() -> None:
    schedule = made("length_stages")
    assert [schedule(0, progress) for progress in (0, 0.24, 0.25, 0.4, 0.5, 1)] == [8, 8, 16, 16, 32, 32]
    assert made("length_stages", stages=(4,))(9, 0.7) == 4


def test_a_cycle_goes_round() -> None:
    schedule = made("length_cycle")
    assert [schedule(step, 0.0) for step in range(9)] == [8, 8, 32, 32, 8, 8, 32, 32, 8]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("length_stages", {"stages": (8, 12), "until": (0.5,)}, "stages = 12: rows of model.context = 32"),
        ("length_stages", {"stages": (8, 16)}, "0 ends are of 1 stages"),
        ("length_stages", {"stages": (8, 16, 32), "until": (0.5, 0.5)}, "must ascend"),
        ("length_cycle", {"shapes": (64,)}, "give a divisor"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        made(name, **options)


def test_causal_rows_learn_from_shorter_contexts_alone() -> None:
    batch = Windows(TokenStore([np.arange(200, dtype=np.uint32)], np.array([0]), 0), CONTEXT).batch(0, 2)
    found = cut(batch, 8)
    assert found.inputs.positions is None
    assert torch.equal(found.inputs.values + 1, found.targets)
