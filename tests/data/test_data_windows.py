"""Windows: every target once an epoch, the same for any number of workers, and isolation as a slow reference has it."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.contract.batch import Inputs
from shoestring.data import IGNORED, Batch, TokenStore, Windows
from shoestring.errors import UsageError

END = 0
NAMES = ("inputs", "targets", "positions", "documents")


def of(batch: Batch, name: str) -> Any:
    """A tensor of a batch by the name that the reference has for it."""
    known = {"inputs": batch.inputs.values, "targets": batch.targets}
    return known[name] if name in known else getattr(batch.inputs, name)


documents = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=12)


def counting_store(tokens: int) -> TokenStore:
    """Every token another, so that one can be told from the next."""
    return TokenStore([np.arange(tokens, dtype=np.uint32)], np.array([0]), 0)


@settings(deadline=None)
@given(tokens=st.integers(2, 400), context=st.integers(1, 20), seed=st.integers(0, 99), epoch=st.integers(0, 3))
def test_each_target_once_an_epoch(tokens: int, context: int, seed: int, epoch: int) -> None:
    context = min(context, tokens - 1)
    windows = Windows(counting_store(tokens), context, seed)
    batch = windows.batch(epoch * len(windows), len(windows))
    counts = Counter(batch.targets.flatten().tolist())
    assert set(counts.values()) == {1}
    assert sorted(counts) == list(range(1, len(windows) * context + 1))
    assert tokens - 1 - len(counts) < context  # only a rest shorter than a window is left out
    assert torch.equal(batch.inputs.values + 1, batch.targets)


@settings(deadline=None)
@given(
    start=st.integers(0, 200),
    each=st.integers(1, 7),
    workers=st.integers(1, 6),
    packing=st.sampled_from(["stream", "isolated"]),
)
def test_workers_together_read_what_one_would(start: int, each: int, workers: int, packing: str) -> None:
    store = TokenStore.of([[i % 7 + 1] * (i % 11) for i in range(60)], END)
    windows = Windows(store, 8, seed=5, packing=packing)  # type: ignore[arg-type]
    whole = windows.batch(start, each * workers)
    parts = [windows.batch(start + worker * each, each) for worker in range(workers)]
    for name in NAMES:
        pieces, tensor = [of(part, name) for part in parts], of(whole, name)
        if tensor is None:
            assert pieces == [None] * workers
        else:
            assert torch.equal(torch.cat(pieces), tensor)


def test_resumes_from_an_integer_across_an_epoch() -> None:
    first, again = (Windows(counting_store(101), 10, seed=1) for _ in range(2))
    straight = torch.cat([first.batch(step * 3, 3).inputs.values for step in range(9)])
    assert torch.equal(again.batch(12, 15).inputs.values, straight[12:])


def test_epochs_and_seeds_shuffle_anew_and_shuffle_can_be_off() -> None:
    store = counting_store(1001)
    windows = Windows(store, 10, seed=1)
    assert not np.array_equal(windows.order(0, 100), windows.order(100, 100))
    assert not np.array_equal(windows.order(0, 100), Windows(store, 10, seed=2).order(0, 100))
    assert Windows(store, 10, shuffle=False).order(95, 10).tolist() == [95, 96, 97, 98, 99, 0, 1, 2, 3, 4]


def isolated_by_hand(store: TokenStore, start: int, context: int) -> dict[str, list[int]]:
    """One window of 'isolated' packing, written token by token."""
    begins, tokens = set(store.document_starts.tolist()), store.tokens.tolist()
    row: dict[str, list[int]] = {"inputs": [], "targets": [], "positions": [], "documents": []}
    position, document = -1, 0
    for place in range(start, start + context):
        position += 1
        if place in begins and place > start:
            position, document = 0, document + 1
        row["inputs"].append(tokens[place])
        row["targets"].append(IGNORED if place + 1 in begins else tokens[place + 1])
        row["positions"].append(position)
        row["documents"].append(document)
    return row


@settings(deadline=None, max_examples=200)
@given(documents=documents, context=st.integers(1, 9))
def test_isolated_agrees_with_the_reference(documents: list[list[int]], context: int) -> None:
    store = TokenStore.of(documents, END)
    if len(store) < context + 1:
        return
    windows = Windows(store, context, seed=3, packing="isolated")
    batch = windows.batch(0, len(windows))
    for row, window in enumerate(windows.order(0, len(windows)).tolist()):
        for name, expected in isolated_by_hand(store, window * context, context).items():
            assert of(batch, name)[row].tolist() == expected
    assert batch.tokens == int((batch.targets >= 0).sum())


def test_stream_counts_every_target_and_is_contiguous_int64() -> None:
    batch = Windows(TokenStore.of([[1, 2, 3], [4, 5]], END), 3, shuffle=False).batch(0, 2)
    assert batch.inputs.values.tolist() == [[1, 2, 3], [0, 4, 5]]
    assert batch.targets.tolist() == [[2, 3, 0], [4, 5, 0]]
    assert batch.tokens == 6
    assert batch.inputs.positions is batch.inputs.documents is None
    assert batch.inputs.values.is_contiguous()
    assert batch.targets.is_contiguous()
    assert batch.inputs.values.dtype == batch.targets.dtype == torch.int64


def test_a_batch_moves_whole() -> None:
    batch = Batch(
        Inputs(torch.zeros(1, 2, dtype=torch.int64), documents=torch.zeros(1, 2)), torch.tensor([[1, IGNORED]])
    )
    moved = batch.to("meta")
    assert moved.inputs.values.is_meta
    assert moved.inputs.documents is not None
    assert moved.inputs.documents.is_meta
    assert moved.inputs.positions is None
    assert batch.tokens == 1


def test_too_few_tokens_are_refused_with_both_numbers() -> None:
    assert len(Windows(counting_store(5), 4)) == 1
    with pytest.raises(UsageError, match=r"4 tokens.*needs 5"):
        Windows(counting_store(4), 4)


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, 0)])
def test_a_stretch_that_cannot_be_is_refused(start: int, count: int) -> None:
    with pytest.raises(ValueError, match="stretch"):
        Windows(counting_store(50), 4).batch(start, count)
