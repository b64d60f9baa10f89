"""`shoestring evaluate`: the figures by hand, the same text for every tokenizer, what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.base import open_model
from shoestring.contract.cost import Shape
from shoestring.data.corpus import open_corpus
from shoestring.data.survey import digest, survey
from shoestring.train.trained import load_trained
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs on bytes and one whose tokenizer has longer tokens."""
    folder = tmp_path_factory.mktemp("evaluate")
    words = ["train", "--budget=2ktok", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0"]
    more = {"one": [], "two": ["--seed=1"], "pairs": ["--data.tokenizer=bpe", "--data.vocabulary=300"]}
    for name, own in more.items():
        status, _, errors = shoestring(*words, *own, "--out", folder / name)
        assert status == 0, errors
    return {name: folder / name for name in more}


def measured(*words: object) -> dict[str, Any]:
    status, output, errors = shoestring("evaluate", *words, "--json")
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    return found


def heldout(corpus: Path, share: float) -> list[str]:
    documents = list(open_corpus(str(corpus)).documents())
    split = survey(documents, share, 0)
    return sorted({document for document in documents if split.holds_out(digest(document))})


def test_the_figures_are_those_of_a_plain_loop(runs: dict[str, Path], corpus: Path) -> None:
    found = measured(runs["one"])
    (row,) = found["places"]
    trained = load_trained(runs["one"])
    documents = heldout(corpus, 0.1)
    nats, tokens, flops = 0.0, 0, 0
    for document in documents:
        row_of = [trained.tokenizer.end, *trained.tokenizer.encode(document)]
        for start in range(0, len(row_of) - 1, 32):
            ids = torch.tensor(row_of[start : start + 33])
            with torch.no_grad():
                logits = trained.native(ids[None, :-1])[0]
            nats += float(torch.nn.functional.cross_entropy(logits.double(), ids[1:], reduction="sum"))
            tokens += len(ids) - 1
            flops += trained.model.cost(Shape(1, len(ids) - 1)).flops
    size = sum(len(document.encode()) for document in documents)
    assert found["text"] | {"documents": len(documents), "bytes": size} == found["text"]
    assert (row["targets"], row["context"], row["kind"]) == (tokens, 32, "run")
    assert row["nats_per_token"]["value"] == pytest.approx(nats / tokens, rel=1e-5)
    assert row["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert row["bits_per_byte"]["low"] < row["bits_per_byte"]["value"] < row["bits_per_byte"]["high"]
    spent = row["accounts"]["evaluation"]
    assert spent["flops"] >= flops  # padding is paid for
    assert tokens <= spent["read"] <= tokens / 0.75
    assert row["seconds"] > 0
    assert row["peak_memory"] > 1 << 20


def test_several_places_are_measured_on_the_same_bytes(runs: dict[str, Path]) -> None:
    found = measured(runs["one"], runs["two"], runs["pairs"], runs["one"])
    places = found["places"]
    assert len({place["targets"] for place in places}) == 2
    for place, each in zip(places[1:], found["differences"], strict=True):
        difference = place["bits_per_byte"]["value"] - places[0]["bits_per_byte"]["value"]
        assert each["bits_per_byte"]["value"] == pytest.approx(difference, abs=1e-12)
        assert place["bytes_per_token"] * place["targets"] == pytest.approx(found["text"]["bytes"])
    wide = places[1]["bits_per_byte"]["high"] - places[1]["bits_per_byte"]["low"]
    paired = found["differences"][0]["bits_per_byte"]
    assert 0 < paired["high"] - paired["low"] < wide  # what the text is for both leaves the difference
    same = found["differences"][2]["bits_per_byte"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)


def test_a_packed_model_is_measured_too(runs: dict[str, Path], tmp_path: Path) -> None:
    assert shoestring("quantise", runs["one"], "--to=ternary2", "--unmeasured", "--out", tmp_path / "packed")[0] == 0
    own, packed = measured(runs["one"], tmp_path / "packed", "--tokens=300")["places"]
    assert (packed["kind"], packed["targets"]) == ("packed", own["targets"])
    rounded = packed["nats_per_token"]["value"]
    assert rounded != own["nats_per_token"]["value"]
    assert 0.5 < rounded < 8  # a model of one layer, rounded to ternary


def test_it_says_what_was_measured_on_what(runs: dict[str, Path], corpus: Path) -> None:
    status, output, errors = shoestring("evaluate", runs["one"], "--tokens", 500, "--context", 16)
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith(f"measured on  the held-out part of {corpus}: ")
    assert lines[1] == f"{runs['one']} (run, float32; windows of 16 tokens)"
    assert "bits a byte" in lines[2]
    assert "95%, over " in lines[2]
    assert "nats a token" in lines[3]
    assert "500 tokens" in lines[3]
    assert all(said in lines[4] for said in ("tokens/s", "FLOPs on the account 'evaluation'", "of memory at most"))
    output = shoestring("evaluate", runs["one"], "--all", "--tokens", 500, "--dtype", "bfloat16")[1]
    assert f"measured on  all of {corpus}: " in output
    assert "run, bfloat16" in output
    assert "this is no held-out figure" in output
    output = shoestring("evaluate", runs["one"], "--data.heldout=0.3", "--tokens=500")[1]
    assert "held out 10.0% of this corpus, and so was trained on some of this text" in output


def test_one_document_is_cut_into_stretches(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("line after line, ä\n" * 60)
    found = measured(runs["one"], runs["pairs"], f"--data.corpus={tmp_path / 'one.txt'}", "--all")
    assert (found["text"]["documents"], found["text"]["intervals_over"]) == (1, "stretches")
    for place in found["places"]:
        assert place["bits_per_byte"]["low"] is not None
        assert place["bytes_per_token"] * place["targets"] == pytest.approx(found["text"]["bytes"])


def test_a_model_reads_alike_whatever_it_is_batched_with(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = measured(runs["pairs"])["places"][0]
    monkeypatch.setattr("shoestring.base.likelihood.PLACES", 1)
    monkeypatch.setattr("shoestring.base.likelihood.LOGITS", 1000)
    alone = measured(runs["pairs"])["places"][0]
    assert alone["nats_per_token"]["value"] == pytest.approx(together["nats_per_token"]["value"], rel=1e-6)
    opened = open_model(str(runs["pairs"]))
    assert alone["accounts"]["evaluation"]["read"] == alone["targets"]
    assert alone["accounts"]["evaluation"]["flops"] <= alone["targets"] * opened.model.cost(Shape(1, 32)).flops


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is no model that can be opened"),
        (["RUN", "--context", "64"], "a window of 64 tokens is too long: this model reads 32"),
        (["RUN", "--tokens", "0"], "argument --tokens: 0 is not between"),
        (
            ["RUN", "--dtype", "bfloat17"],
            "argument --dtype: 'bfloat17' is no type of weights: did you mean 'bfloat16'?",
        ),
        (["RUN", "--data.tokenizer=bytes"], "--data.tokenizer: the model's own tokenizer and windows are taken"),
        (["RUN", "--data.corpse=x"], "--data.corpse is unknown: did you mean 'corpus'?"),
        (["RUN", "--train.batch=3"], "--train: no key of a run is heeded here"),
        (["RUN", "--data.corpus=/nowhere"], "no corpus '/nowhere'"),
        (["RUN", "--data.heldout=2"], "--data.heldout"),
        ([], "the following arguments are required: PLACE"),
    ],
)
def test_bad_words_are_one_line(runs: dict[str, Path], words: list[str], said: str) -> None:
    status, output, errors = shoestring("evaluate", *(str(runs["one"]) if word == "RUN" else word for word in words))
    assert (status, output) == (2, "")
    assert errors.startswith("shoestring: ")
    assert said in errors
    assert errors.count("\n") == 1


def test_weights_that_are_not_finite_are_an_error(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(str(runs["one"]))
    with torch.no_grad():
        opened.model.embedding.weight.fill_(math.nan)  # type: ignore[attr-defined]
    monkeypatch.setattr("shoestring.cli.evaluate.open_model", lambda place, dtype: opened)
    status, _, errors = shoestring("evaluate", runs["one"])
    assert status == 1
    assert "no finite likelihood" in errors
