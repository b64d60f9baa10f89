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

from shoestring.data.config import Invalid, TextOptions
from shoestring.data.formats.jsonl import jsonl
from shoestring.data.formats.parquet import parquet
from shoestring.data.formats.text import text
from shoestring.data.passages import PASSAGE, passages
from shoestring.data.reading import NotText, TextReading
from shoestring.errors import UsageError
from shoestring.log_lines import held_back


def of(text_field: str = "text", encoding: str = "auto", invalid: Invalid = "refuse") -> TextReading:
    return TextReading(TextOptions(text_field, encoding, invalid))


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
    path.write_bytes(("\ufeff" + "é日😀\r\n" * 1_000_000).encode())
    tracemalloc.start()
    try:
        size = sum(len(passage.encode()) for passage in text(path, TextReading()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == path.stat().st_size - 3 == 11_000_000
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"a\0b", "NUL"), (b"a\xff", "UTF-8"), (b"x" * (1 << 20) + "é".encode()[:1], "UTF-8")]
)
def test_what_is_not_text_is_refused_before_any_of_it_is_yielded(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(NotText, match=rf"a\.txt is not .*{complaint}"):
        next(text(tmp_path / "a.txt", TextReading(), passage=2))


LINES = b"".join(json.dumps({"text": f"line {n} é", "id": n}).encode() + b"\n" for n in range(2000))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    compress: Any = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(LINES) + compress(b'\n{"text": null}\n{"text": "last"}'))  # two frames, joined
    found = list(jsonl(path, TextReading()))
    assert len(found) == 2001
    assert found[-2:] == ["line 1999 é", "last"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_cut_short_or_damaged_is_refused(tmp_path: Path, suffix: str) -> None:
    compress: Any = {".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    for content in (compress(LINES)[:-1], compress(LINES)[:50], b"not compressed"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"a.jsonl{suffix} cannot be read: ") as caught:
            list(jsonl(path, TextReading()))
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
    with pytest.raises(UsageError, match=rf"a\.jsonl, line 3[:,] .*{complaint}"):
        list(jsonl(path, TextReading()))


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet(tmp_path: Path, kind: pyarrow.DataType) -> None:
    path = tmp_path / "a.parquet"
    wanted = [f"row {n}" for n in range(600)]
    column = pyarrow.array([*wanted, None], kind)
    pyarrow.parquet.write_table(pyarrow.table({"body": column, "n": range(601)}), path, row_group_size=100)
    assert list(parquet(path, of("body"))) == wanted
    with pytest.raises(UsageError, match=r"no column 'bodi' .*did you mean 'body'"):
        list(parquet(path, of("bodi")))
    with pytest.raises(UsageError, match="column 'n' is int64, not text"):
        list(parquet(path, of("n")))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="cannot be read as Parquet") as caught:
        list(parquet(path, of("body")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("auto", "\ufeffcafé 日\n".encode()),
        ("auto", "\ufeffcafé 日\n".encode("utf-16-le")),
        ("auto", "\ufeffcafé 日\n".encode("utf-16-be")),
        ("auto", "\ufeffcafé 日\n".encode("utf-32-le")),
        ("utf-16-le", "café 日\n".encode("utf-16-le")),
        ("shift_jisx0213", "café 日\n".encode("shift_jisx0213")),
        ("gb18030", "café 日\n".encode("gb18030")),
    ],
)
def test_text_and_lines_in_every_encoding(tmp_path: Path, encoding: str, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert list(text(path, of(encoding=encoding))) == ["café 日\n"]
    named = "utf-16" if encoding == "auto" else encoding
    path.write_bytes('{"text": "café 日"}\n{"text": "two"}\n'.encode(named))
    assert list(jsonl(path, of(encoding=encoding))) == ["café 日", "two"]


def told(reading: TextReading) -> str:
    with held_back("shoestring") as said:
        reading.report()
    return "; ".join(said)


BAD = b"one\ntw\xe9o\nthree\n" + b"x" * 10_000 + b"\nfo\0ur\xff\n"


def test_invalid_bytes_are_refused_with_their_place_replaced_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(BAD)
    with pytest.raises(
        NotText, match=r"a\.txt is not UTF-8 text: byte 0xe9 .* at line 2, character 3 .*--data\.invalid"
    ) as caught:
        list(text(path, of()))
    assert "\n" not in str(caught.value)
    replacing, skipping = of(invalid="replace"), of(invalid="skip")
    long = "x" * 10_000
    assert "".join(text(path, replacing)) == f"one\ntw\ufffdo\nthree\n{long}\nfo\ufffdur\ufffd\n"
    assert "replaced 3 invalid places" in told(replacing)
    assert "line 2; " in told(replacing)
    assert "".join(text(path, skipping)) == f"one\nthree\n{long}\n"
    assert told(skipping) == (
        f"skipped 2 lines or documents that are not valid text in 1 file: {path}, line 2; {path}, line 5"
    )
    assert "".join(text(path, of(encoding="cp1252", invalid="replace"))).startswith("one\ntwéo")


def _is_utf8(line: bytes) -> bool:
    try:
        return bool(line.decode())
    except UnicodeDecodeError:
        return False


@settings(deadline=None)
@given(content=st.lists(st.sampled_from([b"word", "é日".encode(), b"\n", b"\xff", b"\xe6\x97"]), max_size=40))
def test_replacing_is_what_python_does_and_skipping_leaves_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.txt"
    whole = b" " * 100 + b"".join(content)
    path.write_bytes(whole)
    assert "".join(text(path, of(invalid="replace"))) == whole.decode(errors="replace")
    valid = b"".join(line for line in whole.splitlines(keepends=True) if _is_utf8(line))
    assert "".join(text(path, of(invalid="skip"))) == valid.decode()


@pytest.mark.parametrize("invalid", ["refuse", "replace", "skip"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"%PDF-1.7\n" + b"text " * 50, "a PDF file"),
        (bytes(range(1, 256)) * 4, "control characters"),
        ("Привет, мир! ".encode("cp1251") * 9, "of its beginning stand for nothing|UTF-8"),
        (b"\x7fELF\0\0", "NUL"),
    ],
)
def test_a_binary_file_is_never_read_as_text(tmp_path: Path, content: bytes, complaint: str, invalid: Invalid) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(NotText, match=complaint):
        list(text(path, of(invalid=invalid)))


def test_json_lines_that_are_not_valid_text_are_replaced_or_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "\\ud800!"}\n{"text": \n{"text": "fine"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 1, character 4: byte 0xe9 .*--data\.invalid"):
        list(jsonl(path, of()))
    skipping = of(invalid="skip")
    assert list(jsonl(path, skipping)) == ["fine"]
    assert "skipped 3 lines" in told(skipping)
    replacing = jsonl(path, of(invalid="replace"))
    assert [next(replacing), next(replacing)] == ["caf\ufffd", "\ufffd!"]
    with pytest.raises(UsageError, match="line 3: not JSON"):
        next(replacing)


def test_parquet_text_that_is_not_utf8_and_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    invalid = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\4\0\0\0\6\0\0\0"), pyarrow.py_buffer(b"caf\xe9ok")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": invalid}), path)
    with pytest.raises(UsageError, match=r"a\.parquet, row 1, character 4: byte 0xe9"):
        list(parquet(path, of()))
    assert list(parquet(path, of(invalid="skip"))) == ["ok"]
    assert list(parquet(path, of(invalid="replace"))) == ["caf\ufffd", "ok"]
    assert list(parquet(path, of(encoding="latin-1"))) == ["café", "ok"]
    column = pyarrow.array(["a"])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column, column], ["text", "text"]), path)
    with pytest.raises(UsageError, match="2 columns are named 'text'"):
        list(parquet(path, of()))


def test_a_long_document_is_cut_by_one_rule_in_every_format(tmp_path: Path) -> None:
    long = "word " * 30_000
    (tmp_path / "a.txt").write_text(long)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": long}))
    pyarrow.parquet.write_table(pyarrow.table({"text": [long]}), tmp_path / "a.parquet")
    for name, found in (("txt", text), ("jsonl", jsonl), ("parquet", parquet)):
        reading = of()
        assert list(reading.documents(found(tmp_path / f"a.{name}", reading))) == list(passages([long], PASSAGE))
        assert name == "txt" or "cut 1 documents of more than 65,536 characters into 3" in told(reading)


def test_an_encoding_that_needs_a_byte_order_mark_and_finds_none_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes("café\n".encode("utf-16-be"))
    for found in (text, jsonl):
        with pytest.raises(NotText, match=r"a is not UTF-16 text: .*BOM"):
            list(found(path, of(encoding="utf-16")))
