"""`shoestring data`: what is kept and dropped, what is written, that it is a corpus again, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from shoestring.data.config import TextOptions
from shoestring.data.corpus import open_corpus
from shoestring.data.curated_folder import read_card
from tests.train.command import shoestring_here as shoestring

PAGES = [f"page {number} has words of its own such as w{number} and v{number}" for number in range(10, 30)]


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    path = tmp_path / "pages.jsonl"
    rows = [*PAGES, PAGES[3], "two words", PAGES[5]]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


def curated(*words: object) -> dict[str, Any]:
    status, output, errors = shoestring("data", *words, "--json")
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    return found


def read(folder: Path) -> list[str]:
    return list(open_corpus(str(folder), TextOptions()).documents())


RULES = (
    "--filter",
    "quality_rules",
    "--filter.quality_rules.least_words",
    "5",
    "--filter.quality_rules.stop_words",
    "0",
)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_is_kept_is_a_corpus_with_a_card_and_the_dropped_have_reasons(
    pages: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "kept"
    found = curated(pages, "--dedup", *RULES, "--out", out, "--keep-dropped", "--format", kind)
    assert read(out) == PAGES
    card = read_card(out)
    assert card is not None
    assert card["kept"] == found["kept"] == {"documents": 20, "bytes": sum(map(len, PAGES))}
    assert card["documents"] == 23
    assert card["curators"] == found["curators"]
    names = [curator["name"] for curator in found["curators"]]
    assert names == ["quality_rules", "exact_duplicates", "minhash"]
    dropped = [{why: each["documents"] for why, each in curator["dropped"].items()} for curator in found["curators"]]
    assert dropped == [{"too few words": 1}, {"the same text as an earlier document": 2}, {}]
    if kind == "jsonl":
        rows = [json.loads(line) for line in (out / "dropped" / "00000.jsonl").read_text().splitlines()]
    else:
        rows = pyarrow.parquet.read_table(out / "dropped" / "00000.parquet").to_pylist()
    assert [(row["number"], row["reason"]) for row in rows] == [
        (20, "exact_duplicates: the same text as an earlier document"),
        (21, "quality_rules: too few words"),
        (22, "exact_duplicates: the same text as an earlier document"),
    ]
    assert [row["exact_duplicates.of"] for row in rows] == [3, -1, 5]


def test_without_curators_or_out_it_reports_alone(pages: Path) -> None:
    status, output, errors = shoestring("data", pages)
    assert (status, errors) == (0, "")
    assert "kept 23 of 23 documents" in output


def test_invalid_text_is_refused_or_skipped_with_a_count(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": \n{"text": "caf\xe9"}\n{"text": "fine"}\n')
    status, _, errors = shoestring("data", path)
    assert status == 2
    assert "line 2: not JSON" in errors
    found = curated(path, "--data.invalid", "skip")
    assert found["kept"]["documents"] == 2
    assert found["notes"] == curated(path, "--data.invalid", "skip")["notes"]  # told again by what was read before
    assert "skipped 2 lines" in found["notes"][0]
    assert curated(path, "--data.invalid", "skip", "--data.encoding", "latin-1")["kept"]["documents"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--filter", "minhesh"], "did you mean 'minhash'"),
        (["--filter.minhash.threshold", "2"], "less than or equal to 1"),
        (["--filter", "minhash,minhash"], "each curator is given once"),
        (["--filter", "minhash", "--filter.minhash.threshold", "0.01"], "cannot find pairs"),
        (["--format", "csv", "--out", "x"], "known: jsonl, parquet"),
        (["--keep-dropped"], "give --out FOLDER too"),
        (["--model.width", "3"], "--model: no key of a run is heeded here"),
        (["--data.vocabulary", "300"], "--data.vocabulary: known:"),
        (["--seconds", "0.000001"], "the same again goes on"),
    ],
)
def test_what_cannot_be_done_is_one_line(pages: Path, words: list[str], said: str) -> None:
    status, output, errors = shoestring("data", pages, *words)
    assert status == (1 if "--seconds" in words else 2)
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert said in errors


def test_a_folder_that_is_taken_is_refused_before_any_work(pages: Path, tmp_path: Path) -> None:
    status, _, errors = shoestring("data", pages, "--out", tmp_path)
    assert status == 2
    assert "exists and is not empty" in errors
    status, _, errors = shoestring("data", tmp_path / "none")
    assert status == 2
    assert "no corpus" in errors
