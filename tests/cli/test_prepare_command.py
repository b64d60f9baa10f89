"""`shoestring prepare`: every preparation makes a file that its method reads, from text and from a task, and says what it took."""

import json
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.method import methods
from tests.train.command import TINY


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare") / "run"
    words = ["train", "--budget=2ktok", f"--data.corpus={corpus}", *TINY, "--model.layers=3", "--train.sample_tokens=0"]
    edits = ["--edits=multi_token_heads", "--edits.multi_token_heads.ahead=3", "--objective=multi_token"]
    assert main([*words, *edits, "--out", str(folder)]) == 0
    return folder


PREPARED: dict[str, tuple[list[str], list[str]]] = {
    "datastore": ([], ["--mixture", "retomaton", "--datastore"]),
    "fast_mtp": (["--prepare.length", "16", "--prepare.keep", "9"], ["--drafter", "fast_mtp", "--draft"]),
    "m2r2": (["--prepare.length", "16", "--prepare.layers", "2"], ["--drafter", "m2r2", "--draft"]),
    "dr_llm": (["--prepare.rollouts", "6", "--prepare.steps", "5"], ["--depth", "dr_llm", "--routers"]),
    "own_texts": (["--prepare.tokens", "8", "--prepare.prompt_tokens", "4"], []),
}
"""Options that make it small, and what of `generate` reads its file."""
ELSEWHERE = {"autojudge"}
"""Tested with its acceptance: it needs a model that answers some problems rightly."""


def test_every_preparation_stands_in_the_table() -> None:
    assert {card.name for card in methods("decode", "preparation")} == set(PREPARED) | ELSEWHERE


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_made_is_used(
    name: str, trained: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, use = PREPARED[name]
    made = tmp_path / "made.jsonl"
    capsys.readouterr()
    words = ["prepare", name, str(trained), "--text", str(corpus), "--tokens", "300", "--out", str(made), *options]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(made)
    assert told["found"]
    assert told["made"]["flops"] > 0
    if name == "own_texts":
        texts = [json.loads(line)["text"] for line in made.read_text().splitlines()]
        assert len(texts) % 3 == 0  # each prompt at three temperatures
        return
    for flags in (use, use):  # and again: the same text
        status = main(["generate", str(trained), "line", "--tokens", "6", "--temperature", "0", *flags, str(made)])
        assert status == 0
    first, _, second = capsys.readouterr().out.partition("\nline")
    assert first.removeprefix("line") == second.rstrip("\n")


def test_a_task_gives_the_text(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", "arithmetic", "--task.digits", "1", "--problems", "6"]
    words = ["prepare", "dr_llm", str(trained), *task, "--out", str(tmp_path / "routers")]
    assert main([*words, "--prepare.rollouts", "4", "--prepare.steps", "5"]) == 0
    assert "layers are left out for a text" in capsys.readouterr().out


def test_heads_for_later_tokens_are_trained_saved_and_draft(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for flags in ([], ["--drafter", "multi_token"]):
        capsys.readouterr()
        assert main(["generate", str(trained), "line", "--tokens", "12", "--temperature", "0", *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["datastores", "--text", "x"], "did you mean 'datastore'"),
        (["datastore"], "give --text PATH or --task NAME, and not both"),
        (["datastore", "--text", "x", "--task", "arithmetic"], "and not both"),
        (["m2r2", "--text", "x", "--prepare.ranks", "2"], "did you mean 'rank'"),
        (["m2r2", "--text", "x", "--other.rank", "2"], "--other is unknown"),
        (["autojudge", "--task", "arithmetic"], "needs a draft model: give --draft PLACE"),
        (["datastore", "--text", "nowhere.txt"], "nowhere.txt"),
        (["datastore", "--text", "x", "--draft", "y"], "'datastore' needs no draft model: leave --draft out"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(
    words: list[str], said: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["prepare", words[0], str(trained), "--out", str(tmp_path / "out"), *words[1:]]) == 2
    error = capsys.readouterr().err
    assert said in error, error
    assert error.count("\n") == 1
    for flags, line in (
        (["--mixture", "knn_lm"], "needs the file that was made for it: give --datastore FILE"),
        (["--routers", "x"], "--routers is for a depth that needs a file"),
        (["--drafter", "multi_token", "--draft", "x"], "--draft is for a drafter that needs a place"),
    ):
        assert main(["generate", str(trained), "a", *flags]) == 2
        assert line in capsys.readouterr().err
