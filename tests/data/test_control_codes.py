"""Control codes around documents, and phrases looked for in a corpus."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from shoestring.cli.main import main
from shoestring.config import build
from shoestring.data.config import DataConfig, TextOptions
from shoestring.data.corpus import open_corpus
from shoestring.data.phrases import find_phrases
from shoestring.data.prepare import prepare
from shoestring.errors import UsageError

ROWS: list[dict[str, Any]] = [
    {"text": "Dear you", "genre": "letter"},
    {"text": "Once", "genre": None},
    {"text": "3 eggs", "genre": 7},
]
CODED = ["[genre: letter]\nDear you\n[/genre: letter]", "Once", "[genre: 7]\n3 eggs\n[/genre: 7]"]


def test_a_document_stands_between_the_codes_of_its_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = TextOptions(control_field="genre")
    assert list(open_corpus(str(path), options).documents()) == CODED
    assert list(open_corpus(str(path)).documents()) == [row["text"] for row in ROWS]
    table = pyarrow.table({"text": ["Dear you", "Once"], "genre": ["letter", None]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert list(open_corpus(str(tmp_path / "rows.parquet"), options).documents()) == CODED[:2]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "x"}', "no field 'genre' .data.control_field"),
        ("a.jsonl", '{"text": "x", "genre": [1]}', "line 1: field 'genre' .* neither a line of text"),
        ("a.jsonl", '{"text": "x", "genre": "a\\nb"}', "neither a line of text"),
        ("a.txt", "x", "plain text, which has no field 'genre'"),
    ],
)
def test_a_field_that_is_not_there_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content + "\n")
    with pytest.raises(UsageError, match=said):
        list(open_corpus(str(tmp_path / name), TextOptions(control_field="genre")).documents())
    with pytest.raises(UsageError, match="plain text"):
        open_corpus("python-stdlib", TextOptions(control_field="genre"))


def test_codes_are_trained_on_and_other_codes_are_another_dataset(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "genre": "ab"[i % 2], "k": i}) + "\n" for i in range(40)))
    common = {"corpus": str(path), "tokenizer": "bytes", "heldout": 0.2}
    made = {
        field: prepare(build(DataConfig, {**common, "control_field": field}), tmp_path / "c")
        for field in ("", "genre", "k")
    }
    assert len({one.fingerprint for one in made.values()}) == 3
    train = made["genre"].train
    assert b"[genre: " in bytes(token for token in train.tokens[:60].tolist() if token < 256)


def test_phrases_are_found_as_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = ["one two  one\ntwo", "Two one", "one two one two one two"]
    first, second = find_phrases(documents, ["one two", "three"])
    assert (first.times, first.documents, [number for number, _ in first.places]) == (5, 2, [0, 0, 2, 2, 2])
    assert (second.times, second.documents, second.places) == (0, 0, [])
    with pytest.raises(UsageError, match="a word or more"):
        find_phrases(documents, [" "])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    assert main(["data", str(tmp_path / "a.jsonl"), "--find", "one two", "--find", "three", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["phrase"], one["times"]) for one in told["phrases"]] == [("one two", 5), ("three", 0)]
    assert main(["data", str(tmp_path / "a.jsonl"), "--find", "x", "--dedup"]) == 2
    assert "--find only looks" in capsys.readouterr().err
