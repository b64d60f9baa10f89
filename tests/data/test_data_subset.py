"""Some documents of a corpus, read in place: the same tokens as a copy of them, and an index that is another's refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data import DataConfig, Dataset, TokenStore, Windows, prepare
from shoestring.data.subset import read_index, select, subset, write_index
from shoestring.errors import ShoestringError, UsageError

DOCUMENTS = st.lists(st.lists(st.integers(1, 99), max_size=7), min_size=1, max_size=8)


def in_shards(documents: list[list[int]], limit: int) -> TokenStore:
    whole = TokenStore.of(documents, end=0)
    shards = [whole.tokens[start : start + limit] for start in range(0, len(whole), limit)]
    return TokenStore(shards, whole.document_starts, 0)


@given(documents=DOCUMENTS, limit=st.integers(1, 20), data=st.data())
def test_a_selection_reads_as_a_store_of_those_documents_alone(
    documents: list[list[int]], limit: int, data: st.DataObject
) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(documents) - 1))))
    found = select(in_shards(documents, limit), np.array(chosen, dtype=np.int64))
    copied = TokenStore.of([documents[number] for number in chosen], end=0)
    assert found.document_starts.tolist() == copied.document_starts.tolist()
    assert len(found) == len(copied)
    whole = np.empty(len(copied), dtype=np.int64)
    if len(whole):
        found.read(0, len(found), whole)
    assert whole.tolist() == copied.tokens.tolist()
    for start in range(len(copied) - 2):
        assert found.rows(np.array([start]), 3).tolist() == [copied.tokens[start : start + 3].tolist()]


def test_documents_that_are_not_there_or_out_of_order_are_refused() -> None:
    store = TokenStore.of([[1], [2], [3]], end=0)
    for wrong in ([3], [-1], [1, 0], [1, 1]):
        with pytest.raises(ValueError, match="numbered from 0 to 2"):
            select(store, np.array(wrong))


def test_a_selection_copies_nothing() -> None:
    store = TokenStore.of([[5] * 50, [6] * 50], end=0)
    found = select(store, np.array([1]))
    assert np.shares_memory(found.shards[0], store.shards[0])


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path, Dataset]:
    cache = tmp_path_factory.mktemp("cache")
    config = DataConfig(corpus=str(corpus), tokenizer="bytes", heldout=0.2)
    return config, cache, prepare(config, cache)


def test_a_run_reads_only_the_documents_of_its_index(
    prepared: tuple[DataConfig, Path, Dataset], tmp_path: Path, said: list[str]
) -> None:
    config, cache, whole = prepared
    index = tmp_path / "index.safetensors"
    write_index(index, whole, {"train": np.array([0, 2, 3])})
    part = prepare(replace(config, documents=str(index)), cache)
    assert not said
    assert len(part.train.document_starts) == 3
    assert len(part.heldout) == len(whole.heldout)
    assert part.train.tokens.tolist() == select(whole.train, np.array([0, 2, 3])).tokens.tolist()
    assert Windows(part.train, 16).batch(0, 2).tokens == 32
    other = subset(whole, np.array([0, 2, 4]), np.arange(len(whole.heldout.document_starts)))
    assert len({part.fingerprint, other.fingerprint, whole.fingerprint}) == 3


def test_an_index_that_is_missing_damaged_or_of_another_corpus_is_refused(
    prepared: tuple[DataConfig, Path, Dataset], tmp_path: Path
) -> None:
    config, cache, whole = prepared
    index = tmp_path / "index.safetensors"
    with pytest.raises(UsageError, match="no index of documents at"):
        prepare(replace(config, documents=str(index)), cache)
    write_index(index, replace(whole, fingerprint="another"), {})
    with pytest.raises(UsageError, match="of another corpus"):
        read_index(index, whole)
    index.write_bytes(index.read_bytes()[:30])
    with pytest.raises(ShoestringError, match="or damaged"):
        read_index(index, whole)
    with pytest.raises(UsageError, match="at least one to train on"):
        subset(whole, np.empty(0, dtype=np.int64), np.array([0]))
