"""Tokens on disk: what was written is read whatever the shards, and a shard that is not the one written is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data.shards import ShardWriter
from shoestring.data.store import Split, StoreWriter, TokenStore
from shoestring.errors import ShoestringError

U16 = np.dtype(np.uint16)


def written(folder: Path, documents: list[list[int]], limit: int, dtype: np.dtype = U16) -> Split:
    writer = StoreWriter(folder, "train", dtype, end=0, shard_items=limit)
    for document in documents:
        writer.add(document, text_bytes=len(document))
    return writer.close()


@settings(deadline=None, max_examples=60)
@given(documents=st.lists(st.lists(st.integers(1, 65535), max_size=9), max_size=9), limit=st.integers(1, 12))
def test_reads_what_was_written_whatever_the_shards(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    part = written(folder, documents, limit)
    store, memory = TokenStore.open(folder, part, U16, 65536), TokenStore.of(documents, end=0)
    assert all(shard.items == limit for shard in part.shards[:-1])
    assert store.tokens.tolist() == memory.tokens.tolist()
    assert store.document_starts.tolist() == memory.document_starts.tolist()
    assert (part.tokens, part.documents, part.bytes) == (len(store), len(documents), sum(map(len, documents)))
    for length in range(1, min(len(store), 7) + 1):
        starts = np.arange(len(store) - length + 1)
        expected = [store.tokens[start : start + length].tolist() for start in starts]
        assert store.rows(starts, length).tolist() == expected


def test_files_are_flat_little_endian(tmp_path: Path) -> None:
    part = written(tmp_path, [[1, 2, 258]], limit=3, dtype=np.dtype(np.uint32))
    assert [shard.file for shard in part.shards] == ["train-00000.bin", "train-00001.bin"]
    assert (tmp_path / "train-00000.bin").read_bytes() == bytes([1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0])


def test_rows_beyond_the_ends_are_refused() -> None:
    store = TokenStore.of([[1, 2, 3]], end=0)
    for start in (-1, 3):
        with pytest.raises(IndexError, match="there are 4 tokens"):
            store.rows(np.array([0, start]), 2)


@pytest.mark.parametrize("name", ["train-00001.bin", "train.starts-00000.bin"])
def test_truncated_foreign_and_missing_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    part = written(tmp_path, [[5] * 30] * 3, limit=50)
    path = tmp_path / name
    whole = path.read_bytes()
    for content, complaint in (
        (whole[:-1], f"bytes long, not {len(whole)}"),
        (whole + b"\0", f"bytes long, not {len(whole)}"),
        (bytes(len(whole)), "damaged: its checksum"),
    ):
        path.write_bytes(content)
        with pytest.raises(ShoestringError, match=f"{name} is .*{complaint}") as caught:
            TokenStore.open(tmp_path, part, U16, 65536)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ShoestringError, match=f"{name} cannot be read"):
        TokenStore.open(tmp_path, part, U16, 65536)


@pytest.mark.parametrize("name", ["train-00000.bin", "train.starts-00000.bin"])
def test_damage_in_the_middle_is_found_when_the_store_is_opened(tmp_path: Path, name: str) -> None:
    part = written(tmp_path, [[5, 6, 7, 8] * 3] * 2_000, limit=1 << 20)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 32] = bytes(reversed(content[half : half + 32]))  # the same numbers, in another order
    path.write_bytes(content)
    with pytest.raises(ShoestringError, match=f"{name} is damaged: its checksum"):
        TokenStore.open(tmp_path, part, U16, 65536)


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    part = written(tmp_path, [[5, 9, 7], [3]], limit=2)
    TokenStore.open(tmp_path, part, U16, 10)
    with pytest.raises(ShoestringError, match="holds the token 9, and its tokenizer has 9 of them"):
        TokenStore.open(tmp_path, part, U16, 9)


@pytest.mark.parametrize("starts", [[1, 4, 6], [0, 4, 4], [0, 6, 4], [0, 4, 9], [0, 4, 2**40]])
def test_documents_that_start_where_none_can_are_refused(tmp_path: Path, starts: list[int]) -> None:
    part = written(tmp_path, [[5, 6, 7], [5], [5, 6]], limit=99)
    writer = ShardWriter(tmp_path, "forged", np.dtype(np.int64))
    writer.append(np.array(starts))
    with pytest.raises(ShoestringError, match="not those that its manifest describes"):
        TokenStore.open(tmp_path, replace(part, starts=writer.close()[0]), U16, 65536)
