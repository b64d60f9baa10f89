"""File formats: text in passages, JSON lines, Parquet; compressed or not; and what is said of a broken one."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.data.formats.jsonl import jsonl
from shoestring.data.formats.parquet import parquet
from shoestring.data.formats.text import NotText, passages, text
from shoestring.errors import UsageError


@settings(deadline=None)
@given(blocks=st.lists(st.text("ab \n", max_size=30), max_size=8), limit=st.integers(2, 20))
def test_passages_joined_are_the_text_whatever_the_blocks(blocks: list[str], limit: int) -> None:
    whole = "".join(blocks)
    cut = list(passages(blocks, limit))
    assert "".join(cut) == whole
    assert cut == list(passages([whole], limit))
    assert all(0 < len(passage) <= limit for passage in cut)


@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        ("aaaaa\n\nb\nc d", ["aaaaa\n\n", "b\nc d"]),
        ("aaaaaa\nb c dddd", ["aaaaaa\n", "b c dddd"]),
        ("aaaaaa b cccc", ["aaaaaa b ", "cccc"]),
        ("a" * 12, ["a" * 10, "aa"]),
        ("aaaaaa bbb", ["aaaaaa bbb"]),
    ],
)
def test_passages_end_at_a_blank_line_else_a_line_else_a_word(whole: str, cut: list[str]) -> None:
    assert list(passages([whole], 10)) == cut


def test_text_is_exact_and_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(("\ufeffé日😀\r\n" * 1_000_000).encode())
    tracemalloc.start()
    try:
        size = sum(len(passage.encode()) for passage in text(path, ""))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == path.stat().st_size == 14_000_000
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"a\0b", "NUL"), (b"a\xff", "UTF-8"), (b"x" * (1 << 20) + "é".encode()[:1], "UTF-8")]
)
def test_what_is_not_text_is_refused_before_any_of_it_is_yielded(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(NotText, match=rf"a\.txt is not .*{complaint}"):
        next(text(tmp_path / "a.txt", "", passage=2))


LINES = b"".join(json.dumps({"text": f"line {n} é", "id": n}).encode() + b"\n" for n in range(2000))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    compress: Any = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(LINES) + compress(b'\n{"text": null}\n{"text": "last"}'))  # two frames, joined
    found = list(jsonl(path, "text"))
    assert len(found) == 2001
    assert found[-2:] == ["line 1999 é", "last"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_cut_short_or_damaged_is_refused(tmp_path: Path, suffix: str) -> None:
    compress: Any = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    for content in (compress(LINES)[:-1], compress(LINES)[:50], b"not compressed"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"a.jsonl{suffix} cannot be read: ") as caught:
            list(jsonl(path, "text"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'"text"', "not a JSON object"),
        (b'{"txt": "a"}', "no field 'text' .*did you mean 'txt'"),
        (b'{"text": 3}', "'text' is not text"),
        (b'{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(UsageError, match=rf"a\.jsonl, line 3: .*{complaint}"):
        list(jsonl(path, "text"))


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet(tmp_path: Path, kind: pyarrow.DataType) -> None:
    path = tmp_path / "a.parquet"
    wanted = [f"row {n}" for n in range(600)]
    column = pyarrow.array([*wanted, None], kind)
    pyarrow.parquet.write_table(pyarrow.table({"body": column, "n": range(601)}), path, row_group_size=100)
    assert list(parquet(path, "body")) == wanted
    with pytest.raises(UsageError, match=r"no column 'bodi' .*did you mean 'body'"):
        list(parquet(path, "bodi"))
    with pytest.raises(UsageError, match="column 'n' is int64, not text"):
        list(parquet(path, "n"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="cannot be read as Parquet") as caught:
        list(parquet(path, "body"))
    assert "\n" not in str(caught.value)
