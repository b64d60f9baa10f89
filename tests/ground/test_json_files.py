"""JSON from anywhere is read, or refused by a short line that names where it is wrong."""

from pathlib import Path

import pytest

from shoestring.errors import ShoestringError, UsageError, printable
from shoestring.json_files import NotJson, parse_json, read_json, read_lines

BAD = {
    b"": "Expecting value",
    b"{": "Expecting property name",
    b"\xff": "not UTF-8",
    b"[" * 100_000: "nested more than 100 deep",
    b"[" * 200 + b"]" * 200: "nested more than 100 deep",
    b'{"a":' * 200 + b"1" + b"}" * 200: "nested more than 100 deep",
    b"9" * 5000: "300 digits",
}


@pytest.mark.parametrize("text", BAD, ids=[str(text[:6]) for text in BAD])
def test_what_is_no_json_is_refused(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(NotJson, match=BAD[text]):
        parse_json(text)
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ShoestringError, match=r"a\.json, line 1, is damaged") as caught:
        read_json(tmp_path / "a.json", dict, "an object")
    assert str(caught.value).isprintable()


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n\n{"n": 2}')
    assert [number for number, _ in read_lines(path, {"n"})] == [1, 3]
    assert [number for number, _ in read_lines(path, {"n"}, unfinished=False)] == [1]
    path.write_bytes(b'{"n": 1}\n{"n": ')
    assert len(read_lines(path)) == 1
    assert read_lines(tmp_path / "absent") == []
    for text, complaint in (
        (b'{"n": true}\n', "line 1, is damaged: 'n' is not a number"),
        (b'{}\n{"n": "x"}\n', "line 2, is damaged: 'n' is not a number"),
        (b"[]\n", "line 1, is damaged: not an object"),
        (b"{}\nnot\n{}\n", "line 2, is damaged: not JSON"),
        (b"[" * 9999 + b"\n", "line 1, is damaged: not JSON"),
    ):
        path.write_bytes(text)
        with pytest.raises(ShoestringError, match=complaint):
            read_lines(path, {"n"})


def test_an_error_is_one_printable_line_whatever_it_quotes() -> None:
    error = UsageError("no such run: a\x1b[31mb\nc\ud800")
    assert str(error) == r"no such run: a\x1b[31mb\nc\ud800"
    assert printable("été, 日本") == "été, 日本"
