"""Documents and their columns: streamed, worked out once, and gone on with after a kill."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data import TokenStore, byte_tokenizer
from shoestring.data.curation import documents as module
from shoestring.data.curation.account import Account, OutOfTime
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import StoreSource, open_documents
from shoestring.errors import ShoestringError
from tests.data.curation.texts import Texts, opened

TEXTS = [f"document {number} " * (1 + number % 7) for number in range(60)]


def lengths(texts: list[str]) -> dict[str, np.ndarray]:
    return {"length": np.array([len(text) for text in texts]), "pair": np.array([[len(text), 1] for text in texts])}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 100)
    monkeypatch.setattr(module, "PART", 400)


def test_a_column_is_worked_out_once_and_found_again(tmp_path: Path) -> None:
    documents = opened(TEXTS, tmp_path)
    assert list(documents) == TEXTS
    assert documents.bytes.tolist() == [len(text) for text in TEXTS]
    first = documents.mapped("lengths", {}, lengths, Account())
    assert first["length"].tolist() == [len(text) for text in TEXTS]
    assert first["pair"].shape == (len(TEXTS), 2)
    again = opened(TEXTS, tmp_path).mapped("lengths", {}, lambda texts: pytest.fail("again"), Account())
    assert again["length"].tolist() == first["length"].tolist()
    with pytest.raises(pytest.fail.Exception):  # other options are another column
        documents.mapped("lengths", {"a": 1}, lambda texts: pytest.fail("new"), Account())


@given(kept=st.lists(st.booleans(), min_size=len(TEXTS), max_size=len(TEXTS)))
def test_some_of_the_documents_read_as_those_alone(kept: list[bool]) -> None:
    # nothing is worked out, so nothing is kept on disk
    whole = module.Documents(
        Texts(TEXTS),
        module.ColumnFolder(Path("/nonexistent")),
        np.arange(len(TEXTS)),
        np.zeros(len(TEXTS), np.int64),
        np.array([[0, 0]] * len(TEXTS), np.uint64),
        [],
    )
    digests = b"".join(module.xxhash.xxh3_128_digest(text.encode()) for text in TEXTS)
    whole.content = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    part = whole.only(np.array(kept))
    expected = [text for text, keep in zip(TEXTS, kept, strict=True) if keep]
    assert list(part) == expected
    for start in (0, 1, len(expected)):
        assert list(part.texts(start)) == expected[start:]
    again = part.only(np.arange(len(part)) % 2 == 0)
    assert list(again) == expected[::2]


def test_time_that_is_spent_keeps_what_was_worked_out(tmp_path: Path) -> None:
    documents, seen = opened(TEXTS, tmp_path), list[str]()
    clock = iter(range(1000))

    def noted(texts: list[str]) -> dict[str, np.ndarray]:
        seen.extend(texts)
        return lengths(texts)

    with pytest.raises(OutOfTime, match="the same again goes on"):
        documents.mapped("lengths", {}, noted, Account(seconds=5, now=lambda: next(clock)))
    before = len(seen)
    assert 0 < before < len(TEXTS)
    found = documents.mapped("lengths", {}, noted, Account())
    assert seen == TEXTS  # none twice, none left out
    assert found["length"].tolist() == [len(text) for text in TEXTS]


def test_a_killed_process_loses_one_part_at_most(tmp_path: Path) -> None:
    documents = opened(TEXTS, tmp_path)
    read, written = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def until_it_hangs(texts: list[str]) -> dict[str, np.ndarray]:
            nonlocal count
            count += len(texts)
            if count > 40:
                os.write(written, b"x")
                signal.pause()
            return lengths(texts)

        documents.mapped("lengths", {}, until_it_hangs, Account())
        os._exit(1)
    assert os.read(read, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seen: list[str] = []

    def noted(texts: list[str]) -> dict[str, np.ndarray]:
        seen.extend(texts)
        return lengths(texts)

    found = documents.mapped("lengths", {}, noted, Account())
    assert found["length"].tolist() == [len(text) for text in TEXTS]
    assert 0 < len(seen) < len(TEXTS) - 20
    assert seen == TEXTS[-len(seen) :]


def test_of_two_processes_that_want_a_column_one_makes_it(tmp_path: Path) -> None:
    documents = opened(TEXTS, tmp_path)
    (begun, began), (ended, ending) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:

        def slow(texts: list[str]) -> dict[str, np.ndarray]:
            os.write(began, b"x")
            os.read(ended, 1)  # until the other process waits, or is about to
            return lengths(texts)

        documents.mapped("lengths", {}, slow, Account())
        os._exit(0)
    os.read(begun, 1)
    os.write(ending, b"x" * len(TEXTS))
    found = documents.mapped("lengths", {}, lambda texts: pytest.fail("made twice"), Account())
    assert found["length"].tolist() == [len(text) for text in TEXTS]
    assert os.waitpid(child, 0)[1] == 0


def test_a_corpus_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = Texts(TEXTS)
    documents = open_documents(source, tmp_path)
    source.list[30] = "another text"
    with pytest.raises(ShoestringError, match="changed while it was being read"):
        list(documents)
    source.list = TEXTS[:50]
    with pytest.raises(ShoestringError, match="changed while it was being read"):
        list(documents)


def test_an_unchanged_corpus_is_not_read_again_to_be_measured(tmp_path: Path) -> None:
    source = Texts(TEXTS)
    source.notes = ["left out 1 of 3 files"]
    open_documents(source, tmp_path)
    again = open_documents(source, tmp_path)
    assert source.readings == 1
    assert again.notes == ["left out 1 of 3 files"]


def test_a_damaged_column_is_named(tmp_path: Path) -> None:
    documents = opened(TEXTS, tmp_path)
    documents.mapped("lengths", {}, lengths, Account())
    (file,) = (tmp_path / "columns").glob("*/length.npy")
    file.write_bytes(file.read_bytes()[:70])
    with pytest.raises(ShoestringError, match="delete it and it will be made anew"):
        documents.mapped("lengths", {}, lengths, Account())


def test_a_prepared_split_is_a_source_whose_numbers_are_the_stores(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    store = TokenStore.of([tokenizer.encode(text) for text in ("one", "two", "three")], tokenizer.end)
    documents = open_documents(StoreSource(store, tokenizer, "abc"), tmp_path)
    assert list(documents) == ["one", "two", "three"]
    assert documents.only(np.array([True, False, True])).numbers.tolist() == [0, 2]


def test_a_sample_is_even_and_the_same_each_time(tmp_path: Path) -> None:
    documents = opened(TEXTS, tmp_path)
    drawn = documents.sample(20)
    assert drawn.tolist() == documents.sample(20).tolist() == sorted(set(drawn.tolist()))
    assert drawn.tolist() != documents.sample(20, seed=1).tolist()
    assert documents.sample(100).tolist() == list(range(len(TEXTS)))


def test_a_column_names_its_reasons() -> None:
    with pytest.raises(ValueError, match="a reason that the column names"):
        Column(np.array([0], np.int16))
    with pytest.raises(ValueError, match="a value for each document"):
        Column(np.array([-1], np.int16), (), {"score": np.zeros(2)})
