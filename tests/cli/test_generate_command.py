"""`shoestring generate`: where prompts come from, what it says of them, when it stops, and its --json."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoestring.base import open_model
from shoestring.cli.main import main
from shoestring.decode.acceptances.autojudge import MismatchJudge
from tests.train.command import TINY

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "run"
    words = ["train", "--budget=2ktok", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0"]
    assert main([*words, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def generate(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["generate", str(trained), "--tokens", "6", *map(str, words)])
        return status, *capsys.readouterr()

    return generate


def samples(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_parts_of_a_set_are_answered_the_same_in_any_order(run: Run) -> None:
    words = ["Which?{} Answer:", "--temperature", "0", "--json"]
    found = [run(*words, *(w for part in parts for w in ("--part", part))) for parts in (("abc", "de"), ("de", "abc"))]
    assert [status for status, _, _ in found] == [0, 0]
    assert len({str(samples(output)[0]["text"]) for _, output, _ in found}) == 1
    status, _, errors = run("no place for them", "--part", "abc")
    assert status != 0
    assert "where the prompt has '{}'" in errors


def test_prompts_come_from_words_files_and_standard_input(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.txt").write_text("from a file")
    (tmp_path / "two.txt").write_text("and another")
    files = ["--file", tmp_path / "one.txt", "--file", tmp_path / "two.txt"]
    give(monkeypatch, "gegeben: äöü".encode())
    status, output, _ = run("line 1", "-", *files, "--json", "line 2")
    assert status == 0
    prompts = [sample["prompt"] for sample in samples(output)]
    assert prompts == ["line 1", "gegeben: äöü", "line 2", "from a file", "and another"]
    give(monkeypatch, b"line 3")
    status, output, errors = run()
    assert (status, output.startswith("line 3")) == (0, True)
    assert "(6 positions read, 6 tokens written in" in errors
    assert all(said in errors for said in ("tokens/s", "FLOPs", "moved)"))


def test_json_is_one_object_a_sample_and_each_sample_is_another(run: Run) -> None:
    found = samples(run("line 1", "text", "--samples", 2, "--seed", 5, "--json")[1])
    assert [(sample["prompt"], sample["sample"]) for sample in found] == [
        ("line 1", 1),
        ("line 1", 2),
        ("text", 1),
        ("text", 2),
    ]
    for sample in found:
        assert set(sample) == {"prompt", "sample", "text", "prompt_tokens", "tokens", "seconds", "stopped", "spent"}
        # samples of one prompt read it once
        read = {"read"} if sample["sample"] == 1 else set()
        assert sample["spent"].keys() == {"flops", "written", "calls", "moved"} | read  # type: ignore[attr-defined]
        assert sample["spent"].get("read", 0) == (sample["prompt_tokens"] if read else 0)  # type: ignore[attr-defined]
        assert sample["prompt_tokens"] == len(str(sample["prompt"]))
        assert (sample["tokens"], sample["stopped"]) == (6, "length")
        assert isinstance(sample["seconds"], float)
        assert sample["seconds"] > 0
    (first,) = samples(run("line 1", "--seed", 5, "--json")[1])
    assert found[0]["text"] == first["text"] != found[1]["text"]
    shown = run("line 1", "--samples", 2, "--seed", 5)[1]
    assert shown == "".join(
        f"--- prompt 1 of 1, sample {number} of 2\nline 1{found[number - 1]['text']}\n" for number in (1, 2)
    )


def test_it_ends_before_a_stop_string(run: Run) -> None:
    (whole,) = samples(run("line 1", "--seed", 3, "--json")[1])
    text = str(whole["text"])
    stop = text[2:4]
    (cut,) = samples(run("line 1", "--seed", 3, "--json", "--stop", "never", "--stop", stop)[1])
    assert cut["text"] == text[: text.index(stop)]
    assert cut["stopped"] == "stop"
    assert run("line 1", "--seed", 3, "--stop", stop)[1] == f"line 1{cut['text']}\n"


def test_a_text_follows_an_expression_or_a_schema(run: Run, tmp_path: Path) -> None:
    (sample,) = samples(run("line 1", "--regex", "[xy]{3}", "--json")[1])
    assert re.fullmatch("[xy]{3}", str(sample["text"]))
    assert (sample["stopped"], sample["tokens"]) == ("end", 3)
    (tmp_path / "schema.json").write_text('{"enum": [12, 345]}')
    for sample in samples(run("line 1", "--schema", tmp_path / "schema.json", "--samples", 3, "--json")[1]):
        assert sample["text"] in ("12", "345")
    (tmp_path / "bad.json").write_text("[1]")
    for words, said in (
        (("--regex", "((("), "the regular expression cannot be used: unclosed group"),
        (("--schema", tmp_path / "bad.json"), "is no JSON schema: one is an object"),
        (("--schema", "/nowhere.json"), "/nowhere.json cannot be read"),
        (("--schema", "a", "--regex", "b"), "argument --regex: not allowed with argument --schema"),
    ):
        status, output, errors = run("line 1", *words)
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert said in errors


def test_a_prompt_longer_than_the_context_is_refused_or_cut(run: Run) -> None:
    status, output, errors = run("ok", "x" * 40)
    assert (status, output) == (2, "")
    assert errors == (
        "shoestring: the prompt has 40 tokens, and this model reads 32: "
        "shorten it, or give --keep-last to go on from its last tokens\n"
    )
    status, output, errors = run("x" * 40, "--keep-last", "--json")
    assert status == 0
    assert "(the prompt has 40 tokens, and this model reads 32: the last 26 are kept)" in errors
    (sample,) = samples(output)
    assert (sample["prompt"], sample["prompt_tokens"], sample["tokens"]) == ("x" * 40, 26, 6)
    (full,) = samples(run("x" * 30, "--json")[1])
    assert (full["tokens"], full["stopped"]) == (3, "context")


@pytest.mark.parametrize(
    ("words", "given", "line"),
    [
        ([], b"one\ntwo \xff", "standard input is not UTF-8: byte 0xff at offset 8, line 2; convert it first"),
        (["a\udcffb"], b"", "the prompt is not UTF-8: character 2 of it is no text"),
        (["\ud800"], b"", "the prompt is not UTF-8: character 1 of it is no text"),
        ([], b"", "the prompt is empty: give some text to go on from"),
        (["-", "-"], b"", "'-' is given twice, and standard input is read once"),
        (["--file", "/nowhere.txt"], b"", "/nowhere.txt cannot be read: No such file or directory"),
        (["a", "--samples", "0"], b"", "argument --samples: '0' is not a whole number of 1 or more"),
        (["a", "--tokens", "0"], b"", "argument --tokens: '0' is not a whole number of 1 or more"),
        (["a", "--min-p", "2"], b"", "min_p = 2.0: input should be less than or equal to 1 (--min-p)"),
        (["a", "--drafter", "ngrams"], b"", "no drafter method is named 'ngrams': "),
        (["a", "--drafter", "draft_model"], b"", "the drafter 'draft_model' needs a draft model: give --draft PLACE"),
        (
            ["a", "--acceptance", "autojudge"],
            b"",
            "the acceptance 'autojudge' needs the file that was made for it: give --judge",
        ),
        (["a", "--judge", "x"], b"", "--judge is for an acceptance that needs a file"),
        (["a", "--draft", "x"], b"", "--draft is for a drafter that needs a place"),
        (["a", "--drafter", "ngram", "--draft", "x"], b"", "--draft is for a drafter that needs a place"),
        (["a", "--samples", "x"], b"", "argument --samples: 'x' is not a whole number of 1 or more"),
        (["a", "--stop", ""], b"", "argument --stop: a stop string needs at least one character"),
        (["a", "--system", "be kind"], b"", "--system is a message of a chat: give --chat, or --messages PATH"),
        (["a", "--chat", "--keep-last"], b"", "--keep-last would cut a chat in the middle of its template"),
        (["--messages", "/nowhere.jsonl"], b"", "/nowhere.jsonl cannot be read: No such file or directory"),
        (["a", "--dtype", "int8"], b"", "argument --dtype: 'int8' is no type of weights"),
        (["a", "--samples", "3", "--temperature", "0"], b"", "--samples 3 at --temperature 0 is one text 3 times"),
    ],
)
def test_bad_prompts_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], given: bytes, line: str
) -> None:
    give(monkeypatch, given)
    status, output, errors = run(*words)
    assert (status, output) == (2, "")
    assert errors.startswith(f"shoestring: {line}")
    assert errors.count("\n") == 1


def test_weights_are_opened_in_the_type_that_is_asked_for(run: Run) -> None:
    wide, narrow = (samples(run("line", "--dtype", kind, "--json")[1])[0] for kind in ("float32", "bfloat16"))
    assert 0.4 < narrow["spent"]["moved"] / wide["spent"]["moved"] < 0.6  # type: ignore[index]


def test_drafts_of_another_model_change_no_text(run: Run, trained: Path) -> None:
    words = ["line 1", "text", "--seed", 5, "--json", "--tokens", 20]
    plain, drafted = (samples(run(*words, *more)[1]) for more in ([], ["--drafter", "draft_model", "--draft", trained]))
    assert [sample["text"] for sample in drafted] == [sample["text"] for sample in plain]
    calls = [sum(sample["spent"]["calls"] for sample in found) for found in (plain, drafted)]  # type: ignore[index]
    assert calls[0] != calls[1]


def test_a_lossy_acceptance_says_what_it_changed(run: Run, trained: Path, tmp_path: Path) -> None:
    width, judge = open_model(str(trained)).model.about.width, tmp_path / "judge.safetensors"
    MismatchJudge(torch.zeros(2 * width).double(), torch.tensor(-9.0).double(), 0.5, 1.0, 1.0).save(
        judge
    )  # nothing matters
    words = ["abcabcabc", "--samples", 2, "--drafter", "ngram", "--acceptance", "autojudge", "--judge", judge, "--json"]
    _, output, errors = run(*words)
    changed = [sample.get("changed", 0) for sample in samples(output)]
    assert sum(changed) > 0  # type: ignore[arg-type]
    assert f"({sum(changed)} drafted tokens stayed though the model chose others:" in errors  # type: ignore[arg-type]


def test_a_model_without_a_template_does_not_chat(run: Run, trained: Path) -> None:
    status, output, errors = run("hello", "--chat")
    assert (status, output) == (2, "")
    assert errors.startswith(f"shoestring: {trained} has no chat template")


def test_a_cache_of_a_share_and_of_eight_bits(run: Run) -> None:
    words = ("word", "--temperature", 0, "--json", "--cache.store", "int8", "--cache.stride=1")
    status, out, told = run(*words, "--cache.budget", "100%", "--cache.policy", "window", "--cache.policy.sinks", 2)
    assert status == 0
    assert samples(out)[0]["tokens"] == 6
    assert "evicted nothing" in told
    status, _, told = run(*words, "--cache.policy", "window")
    assert status != 0
    assert "keeps to a budget" in told
    status, _, told = run(*words, "--cache.budget", "1KiB")
    assert status != 0
    assert "set policy" in told
