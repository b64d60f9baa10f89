"""Corpora: what is read, in which order, what is left out and said, and what is refused."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from shoestring.config import build
from shoestring.data import DataConfig, open_corpus
from shoestring.data.config import TextOptions
from shoestring.data.corpora.hub import Hub
from shoestring.data.reading import TextReading
from shoestring.errors import UsageError
from shoestring.log_lines import held_back
from shoestring.method import method, methods


def read(where: str | Path, text_field: str = "text") -> tuple[list[str], list[str]]:
    with held_back("shoestring") as said:
        return list(open_corpus(str(where), TextOptions(text_field)).documents()), said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with text in every format, and much that is not to be read."""
    for name, content in {
        "b.txt": b"bee",
        "a/z.py": b"zed",
        "a/b.md": b"em",
        "lines.JSONL": b'{"text": "one"}\n{"text": ""}\n{"text": "two"}\n',
        "packed.txt.gz": gzip.compress(b"packed"),
        "empty.txt": b"",
        "image.png": b"\x89PNG\0\0",
        "latin.txt": b"caf\xe9",
        ".hidden": b"hidden",
        ".git/config": b"hidden",
        "cache/CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55",
        "cache/deep/x.txt": b"cached",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_a_folder_is_read_in_order_and_what_is_left_out_is_said(folder: Path) -> None:
    documents, said = read(folder)
    assert documents == ["em", "zed", "bee", "one", "two", "packed"]
    assert len(said) == 1
    assert "2 of 8 files" in said[0]
    assert "image.png" in said[0]


def test_globs_match_files_and_folders_once(folder: Path) -> None:
    assert read(folder / "**" / "*.txt")[0] == ["bee", "cached"]
    assert read(folder / "[ab]*")[0] == ["em", "zed", "bee"]
    assert read(folder / "*.txt*")[0] == ["bee", "packed"]


def test_a_folder_whose_name_is_a_pattern_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "x[1]").mkdir()
    (tmp_path / "x[1]" / "a").write_text("in")
    assert read(tmp_path / "x[1]")[0] == ["in"]


def test_one_long_text_file_is_many_documents(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Paragraph {n} of the book.\n\n" for n in range(10_000)))
    documents, _ = read(path)
    assert 80 < len(documents) < 250
    assert "".join(documents) == path.read_text()
    assert all(document.endswith("\n\n") for document in documents)


def test_one_binary_file_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"image\.png is not text: it holds NUL"):
        read(folder / "image.png")


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("{}/gone", "no such file or folder, nor a corpus of that name"),
        ("python-stdlb", "did you mean 'python-stdlib'"),
        ("{}/*.gone", "no file matches"),
        ("{}/void", "holds no files"),
        ("{}/pipe", "neither a file nor a folder"),
        ("python-stdlib:x", "takes nothing after its name"),
        ("hf:", "needs a name"),
        ("", "is empty"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(tmp_path: Path, where: str, complaint: str) -> None:
    (tmp_path / "void" / ".hidden").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=complaint) as caught:
        read(where.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_stamp_moves_with_every_change_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.txt").write_text("two")
    stamps = [open_corpus(str(tmp_path)).stamp()]
    assert open_corpus(str(tmp_path)).stamp() == stamps[0]
    before = path.stat()
    path.write_text("uno")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time of modification
    stamps.append(open_corpus(str(tmp_path)).stamp())
    (tmp_path / "c.txt").write_text("three")
    stamps.append(open_corpus(str(tmp_path)).stamp())
    (tmp_path / "c.txt").rename(tmp_path / "d.txt")
    stamps.append(open_corpus(str(tmp_path)).stamp())
    (tmp_path / "below").rename(tmp_path / "moved")  # nothing but the path of b.txt is changed by this
    stamps.append(open_corpus(str(tmp_path)).stamp())
    assert len(set(stamps)) == 5


def test_the_standard_library_is_the_size_it_is_said_to_be() -> None:
    corpus = open_corpus("python-stdlib")
    paths = corpus.paths  # type: ignore[attr-defined]
    size = sum(path.stat().st_size for path in paths)
    assert 6e6 < size < 20e6
    names = {part for path in paths for part in path.parts}
    assert {"json", "asyncio", "argparse.py"} <= names
    assert not names & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert paths == open_corpus("python-stdlib").paths  # type: ignore[attr-defined]


def test_a_hub_corpus_read_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    local = tmp_path / "local"
    local.mkdir()
    rows = [json.dumps({"text": text, "n": n}) for n, text in enumerate(["one", "", "two", "three"])]
    (local / "train.jsonl").write_text("\n".join(rows))
    corpus = open_corpus(f"hf:{local}")
    assert list(corpus.documents()) == ["one", "two", "three"]
    assert open_corpus(f"hf:{local}").stamp() == corpus.stamp()
    with pytest.raises(UsageError, match=r"no column 'txt' .*did you mean 'text'"):
        open_corpus(f"hf:{local}", TextOptions("txt"))
    with pytest.raises(UsageError, match="column 'n' is not text"):
        open_corpus(f"hf:{local}", TextOptions("n"))
    (local / "train.jsonl").write_text('{"text": "changed"}')
    changed = open_corpus(f"hf:{local}")
    assert list(changed.documents()) == ["changed"]
    assert changed.stamp() != corpus.stamp()
    for where in (f"hf:{tmp_path}/gone/gone", f"hf:{local}:none"):
        with pytest.raises(UsageError, match="cannot be loaded") as caught:
            open_corpus(where)
        assert "\n" not in str(caught.value)


def test_without_its_package_the_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'shoestring\[hub\]'"):
        Hub("name", TextOptions())


def test_corpora_and_formats_are_methods_with_cards() -> None:
    assert {"files", "hf", "python-stdlib"} <= {card.name for card in methods("data", "corpus")}
    assert {"jsonl", "parquet", "text"} <= {card.name for card in methods("data", "format")}
    assert all(card.claim and card.cost for kind in ("corpus", "format") for card in methods("data", kind))


def test_a_new_format_is_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.method._cards", dict(sys.modules["shoestring.method"]._cards))

    @method("data", kind="format", name="shout", claim="upper case", cost="none")
    def shout(path: Path, reading: TextReading) -> list[str]:
        return [path.read_text().upper()]

    (tmp_path / "a.shout").write_text("hey")
    (tmp_path / "b.txt").write_text("you")
    assert read(tmp_path)[0] == ["HEY", "you"]


@pytest.mark.parametrize("vocabulary", [1, 256])
def test_a_vocabulary_smaller_than_the_bytes_is_refused(vocabulary: int) -> None:
    with pytest.raises(UsageError, match="at least 257"):
        DataConfig(vocabulary=vocabulary)
    assert DataConfig(tokenizer="bytes", vocabulary=vocabulary).vocabulary == vocabulary


def test_a_vocabulary_beyond_any_in_use_is_refused() -> None:
    with pytest.raises(UsageError, match=r"vocabulary = 2147483648: .*less than or equal to 1048576"):
        build(DataConfig, {"vocabulary": 2147483648})


@pytest.mark.parametrize("encoding", ["utf-9", "hex", "", "a\0b"])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(UsageError, match="is no text encoding"):
        DataConfig(encoding=encoding)


def test_what_of_a_folder_was_not_read_is_told(tmp_path: Path, said: list[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_bytes(b"fine\nnot f\xefne\n")
    (tmp_path / "c").write_bytes(b"\x7fELF\0")
    assert list(open_corpus(str(tmp_path), TextOptions(invalid="skip")).documents()) == ["fine\n"] * 2
    assert "left out 1 of 3 files" in said[0]
    assert "skipped 2 lines" in said[1]
    assert f"{tmp_path}/a.txt, line 2; {tmp_path}/b.txt, line 2" in said[1]
