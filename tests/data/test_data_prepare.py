"""Preparing: once, whole or not at all, by one process at a time, and never from a cache that is not what it says."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers

from shoestring.data import DataConfig, Dataset, Windows, byte_tokenizer, open_dataset, prepare, require, train_bpe
from shoestring.data.dataset import _digest as manifest_digest
from shoestring.data.dataset import token_type
from shoestring.errors import ShoestringError, UsageError
from shoestring.log_lines import held_back

preparing = importlib.import_module("shoestring.data.prepare")


def said_by(config: DataConfig, cache: Path) -> tuple[Dataset, list[str]]:
    with held_back("shoestring") as said:
        return prepare(config, cache), said


def write(folder: Path, documents: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    for n in range(documents):
        (folder / f"{n:03}.txt").write_text(f"Document {n} says é: " + "the cat sat on the mat; " * (n % 5 + 1))
    return folder


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(corpus=str(write(tmp_path / "corpus")), vocabulary=270, heldout=0.2)


def texts(dataset: Dataset) -> dict[str, list[str]]:
    """The documents of both splits, decoded."""
    found = {}
    for name, store in (("train", dataset.train), ("heldout", dataset.heldout)):
        pieces = np.split(store.tokens, store.document_starts[1:])
        assert all(piece[-1] == dataset.tokenizer.end for piece in pieces)
        found[name] = [dataset.tokenizer.decode(piece.tolist()) for piece in pieces]
    return found


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_every_document_is_on_one_side_and_nothing_is_lost(config: DataConfig, tmp_path: Path, tokenizer: str) -> None:
    config = DataConfig(config.corpus, tokenizer, 270, 0.2)
    dataset, said = said_by(config, tmp_path / "cache")
    found = texts(dataset)
    originals = [path.read_text() for path in sorted(Path(config.corpus).iterdir())]
    assert sorted(found["train"] + found["heldout"]) == sorted(originals)
    assert len(found["heldout"]) in range(3, 14)
    assert dataset.train.text_bytes == sum(len(text.encode()) for text in found["train"])
    assert dataset.tokenizer.vocabulary == {"bpe": 270, "bytes": 257}[tokenizer]
    assert dataset.train.tokens.dtype == np.uint16
    assert f"{len(dataset.train):,} tokens to train on" in said[-1]


def test_the_second_time_it_is_only_opened(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = said_by(config, tmp_path / "cache")
    monkeypatch.setattr(preparing, "survey", None)  # reading the corpus would call this
    monkeypatch.setattr(preparing, "train_bpe", None)
    again, said = said_by(config, tmp_path / "cache")
    assert (said, again.fingerprint) == ([], first.fingerprint)
    assert texts(again) == texts(first)
    Windows(again.train, 16, 0, packing="isolated").batch(0, 4)


def test_a_change_of_corpus_or_settings_is_another_entry(config: DataConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    settings = [
        config,
        DataConfig(config.corpus, vocabulary=269, heldout=0.2),
        DataConfig(config.corpus, vocabulary=270, heldout=0.4),
        DataConfig(config.corpus, "bytes", heldout=0.2),
    ]
    prints = [said_by(changed, cache)[0].fingerprint for changed in settings]
    (Path(config.corpus) / "003.txt").write_text("another text")
    prints.append(said_by(config, cache)[0].fingerprint)
    assert len(set(prints)) == len(os.listdir(cache / "tokens")) / 2 == 5  # each with its lock


def test_the_same_content_elsewhere_is_the_same_entry(config: DataConfig, tmp_path: Path) -> None:
    first, _ = said_by(config, tmp_path / "cache")
    copy = write(tmp_path / "copy")
    again, said = said_by(DataConfig(str(copy), vocabulary=270, heldout=0.2), tmp_path / "cache")
    assert again.fingerprint == first.fingerprint
    assert "tokenising" not in said


def test_an_existing_tokenizer_is_used_and_one_that_changes_the_text_is_told_of(
    config: DataConfig, tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    given = train_bpe(["the cat sat on the mat " * 9], 265)
    given.save(tmp_path / "given")
    config = DataConfig(config.corpus, str(tmp_path / "given" / "tokenizer.json"))
    dataset, said = said_by(config, tmp_path / "cache")
    assert dataset.tokenizer.fingerprint == given.fingerprint
    assert not any("changes the text" in line for line in said)
    rules = tokenizers.Tokenizer.from_file(config.tokenizer)
    rules.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    rules.save(config.tokenizer)
    _, said = said_by(config, tmp_path / "cache")
    assert "changes the text" in said[-1]
    with pytest.raises(UsageError, match=r"no tokenizer 'bpee'.*did you mean 'bpe'"):
        prepare(DataConfig(config.corpus, "bpee"), tmp_path / "cache")


def test_large_vocabularies_take_four_bytes(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (token_type(65536), token_type(65537)) == (np.uint16, np.uint32)
    unused = {f"unused{n}": n for n in range(65_500)}
    described = json.loads(byte_tokenizer().rules.to_str())
    described["model"]["vocab"] = unused | {token: 65_500 + byte for token, byte in described["model"]["vocab"].items()}
    described["added_tokens"][0]["id"] = 65_756
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "tokenizer.json").write_text(json.dumps(described))
    dataset, _ = said_by(DataConfig(config.corpus, str(tmp_path / "large")), tmp_path / "cache")
    assert dataset.train.tokens.dtype == np.uint32
    assert dataset.train.tokens.max() == dataset.tokenizer.end == 65_756
    assert sum(map(len, texts(dataset).values())) == 40


def test_tiny_corpora_say_what_there_is_and_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "lone.txt").write_text("one document")
    lone, _ = said_by(DataConfig(str(tmp_path / "lone.txt"), "bytes"), tmp_path / "cache")
    assert (len(lone.train), len(lone.heldout)) == (13, 0)
    with pytest.raises(UsageError, match="13 training tokens in 1 documents, and a context of 13 needs 14"):
        require(lone, 13)
    with pytest.raises(UsageError, match="0 held-out tokens in 0 documents, and a context of 12 needs 13"):
        require(lone, 12)
    (tmp_path / "two.jsonl").write_text('{"text": "first document"}\n{"text": "another document"}\n')
    two, said = said_by(DataConfig(str(tmp_path / "two.jsonl"), heldout=0.01), tmp_path / "cache")
    assert len(two.train) >= 10
    assert len(two.heldout) >= 10
    assert any("vocabulary is" in line for line in said)
    require(two, 9)
    (tmp_path / "void.txt").write_text("")
    with pytest.raises(UsageError, match="holds no text"):
        said_by(DataConfig(str(tmp_path / "void.txt")), tmp_path / "cache")


def test_repeated_documents_are_told_and_do_not_starve_training(tmp_path: Path) -> None:
    lines = [f"line {n} of the file" for n in range(60)]
    repeated = ["the same words again and again"] * 600
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines + repeated))
    for heldout in (0.02, 0.1):
        dataset, said = said_by(DataConfig(str(tmp_path / "a.jsonl"), "bytes", heldout=heldout), tmp_path / "cache")
        assert heldout / 4 < len(dataset.heldout) / (len(dataset.train) + len(dataset.heldout)) < heldout * 4
        assert "only 61 of the 660 documents differ" in " ".join(said)


def test_a_long_document_of_json_lines_is_cut_and_told(tmp_path: Path) -> None:
    word = "acgt" * (1 << 16)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (word, "two", "three")))
    dataset, said = said_by(DataConfig(str(tmp_path / "a.jsonl"), "bytes"), tmp_path / "cache")
    assert any("cut 1 documents" in line for line in said)
    found = sorted(texts(dataset)["train"] + texts(dataset)["heldout"], key=len)
    assert found[:2] == ["two", "three"]
    assert sum(map(len, found[2:])) == len(word)


def test_a_damaged_or_foreign_entry_is_refused_in_one_line(config: DataConfig, tmp_path: Path) -> None:
    dataset, _ = said_by(config, tmp_path / "cache")
    (folder,) = (path.parent for path in (tmp_path / "cache" / "tokens").glob("*/manifest.json"))
    assert open_dataset(folder).fingerprint == dataset.fingerprint
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    described = json.loads(whole)

    def signed(**changed: object) -> str:
        content = described | changed
        return json.dumps(content | {"sha256": manifest_digest(content)})

    for content, complaint in (
        (whole[: len(whole) // 2], "manifest.json is damaged"),
        (json.dumps(described | {"version": 99}), "of version 99"),
        ("[]", "of version None"),
        (json.dumps(described | {"corpus": "another"}), "checksum"),
        (json.dumps(described | {"train": described["train"] | {"bytes": 1}}), "checksum"),
        ("[" * 100_000, "nested"),
        (signed(train={}), "damaged at 'train.tokens'"),
        (signed(heldout=described["train"]), "do not belong together"),
        (signed(tokenizer="another"), "do not belong together"),
        (signed(vocabulary=999), "do not belong together"),
        (signed(train=described["train"] | {"documents": 1}), "not those that its manifest describes"),
    ):
        manifest.write_text(content)
        with pytest.raises(ShoestringError, match=complaint) as caught:
            said_by(config, tmp_path / "cache")
        assert "\n" not in str(caught.value)
    manifest.write_text(whole)
    (folder / "train-00000.bin").write_bytes((folder / "train-00000.bin").read_bytes()[:-2])
    with pytest.raises(ShoestringError, match="bytes long"):
        said_by(config, tmp_path / "cache")
    with pytest.raises(ShoestringError, match="no prepared corpus"):
        open_dataset(tmp_path)
    manifest.unlink()  # a folder without one is in the way, and is not taken for anything
    with pytest.raises(ShoestringError, match="cannot write the cache"):
        said_by(config, tmp_path / "cache")


def test_a_corpus_that_changes_while_it_is_read_leaves_nothing(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_and_meddle(sample: tuple[str, ...], vocabulary: int) -> object:
        (Path(config.corpus) / "000.txt").write_text("meddled with")
        return train_bpe(sample, vocabulary)

    monkeypatch.setattr(preparing, "train_bpe", train_and_meddle)
    with pytest.raises(ShoestringError, match="changed while it was being read"):
        said_by(config, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".bin", ".tmp")]


def test_a_cache_that_cannot_be_made_is_one_line(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShoestringError, match="cannot write the cache"):
        said_by(config, tmp_path / "file" / "cache")


def test_a_corpus_is_never_held_whole(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any time at most one batch of documents has been taken and not yet written."""
    monkeypatch.setattr(preparing, "BATCH", 1000)
    taken = written = most = 0
    add = preparing.StoreWriter.add

    class Endless:
        def stamp(self) -> str:
            return "endless"

        def documents(self) -> Iterator[str]:
            nonlocal taken, written
            taken = written = 0
            for n in range(500):
                taken += 1
                yield f"document {n} " * 8

    def watched(self: object, ids: list[int], text_bytes: int) -> None:
        nonlocal written, most
        most = max(most, taken - written)
        written += 1
        add(self, ids, text_bytes)

    monkeypatch.setattr(preparing, "open_corpus", lambda *_: Endless())
    monkeypatch.setattr(preparing.StoreWriter, "add", watched)
    prepare(DataConfig(tokenizer="bytes"), tmp_path / "cache")
    assert written == 500
    assert most < 20


CHILD = """
import importlib, sys, time
from pathlib import Path
from shoestring.data import DataConfig, prepare
preparing = importlib.import_module("shoestring.data.prepare")
corpus, cache, wait = sys.argv[1:]
def stop_before_the_end(*given):
    print("half", flush=True)
    time.sleep(float(wait))
    return write(*given)
write, preparing.write_manifest = preparing.write_manifest, stop_before_the_end
config = DataConfig(corpus, vocabulary=270, heldout=0.2)
print(prepare(config, Path(cache)).fingerprint, flush=True)
"""


def child(config: DataConfig, cache: Path, wait: float) -> subprocess.Popen[str]:
    """Another process preparing the same corpus, which halts for `wait` seconds when only the manifest is missing."""
    words = [sys.executable, "-c", CHILD, config.corpus, str(cache), str(wait)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_a_killed_process_leaves_nothing_that_is_used(config: DataConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = child(config, cache, wait=60)
    assert list((cache / "tokens").glob(".*.tmp/train-00000.bin"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dataset, said = said_by(config, cache)
    assert "tokenising" in said
    assert not list((cache / "tokens").glob(".*.tmp"))
    assert sum(map(len, texts(dataset).values())) == 40


def test_two_processes_make_one_entry_and_agree(config: DataConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = child(config, cache, wait=0.7)
    dataset, said = said_by(config, cache)
    theirs, _ = process.communicate()
    assert process.returncode == 0
    assert any("waiting for another process" in line for line in said)
    assert "tokenising" not in said
    assert dataset.fingerprint == theirs.strip()
    alone, _ = said_by(config, tmp_path / "another cache")  # and made here, it is the same to the last byte
    assert alone.fingerprint == dataset.fingerprint


@pytest.mark.slow
def test_the_standard_library_packs_well_and_opens_fast(tmp_path: Path) -> None:
    dataset, _ = said_by(DataConfig(), tmp_path / "cache")
    assert (dataset.train.text_bytes + dataset.heldout.text_bytes) / (len(dataset.train) + len(dataset.heldout)) > 3.4
    require(dataset, 1024)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        said_by(DataConfig(), tmp_path / "cache")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3
