"""The reference models of the benches: their sizes, one tokenizer, and where they are kept; none is trained here."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shoestring.config import build
from shoestring.errors import ShoestringError
from shoestring.model import ModelConfig, Transformer

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    import reference_models

    monkeypatch.setattr(reference_models, "open_corpus", lambda where: Corpus())
    return reference_models


class Corpus:
    """One document, in place of a whole library."""

    def documents(self) -> list[str]:
        return ["a document"]


def recipe(bench: Any, name: str) -> dict[str, Any]:
    return tomllib.loads((bench.RECIPES / f"{name}.toml").read_text())


SIZES = [("10m", 9.5e6, 10.5e6), ("1.5m", 1.4e6, 1.6e6), ("tasks-0.9m", 0.85e6, 0.95e6), ("tasks-0.2m", 0.2e6, 0.25e6)]


@pytest.mark.parametrize(("name", "least", "most"), SIZES)
def test_a_model_has_the_size_of_its_name(bench: Any, name: str, least: float, most: float) -> None:
    given = recipe(bench, name)
    made = Transformer(build(ModelConfig, {**given["model"], "vocabulary": given["data"].get("vocabulary", 257)}))
    assert least <= sum(parameter.numel() for parameter in made.parameters()) <= most


@pytest.mark.parametrize(("large", "small"), [("10m", "1.5m"), ("tasks-0.9m", "tasks-0.2m")])
def test_both_have_one_tokenizer(large: str, small: str, bench: Any) -> None:
    assert recipe(bench, large)["data"] == recipe(bench, small)["data"]
    assert recipe(bench, large)["model"]["context"] == recipe(bench, small)["model"]["context"]


def test_it_is_trained_once_and_goes_on_where_it_was(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        asked.append(words[words.index("train") + 1 :])
        folder = bench.place("10m")
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").touch()
        if len(asked) == 2:
            (folder / "summary.json").touch()
        return subprocess.CompletedProcess(words, 0 if len(asked) == 2 else 1)

    monkeypatch.setattr(bench.subprocess, "run", run)
    with pytest.raises(ShoestringError, match="training the reference model 10m failed"):
        bench.reference_model("10m")
    folder = bench.reference_model("10m")
    assert bench.reference_model("10m") == folder
    assert asked == [[str(bench.RECIPES / "10m.toml"), "--out", str(folder)], ["--resume", str(folder)]]


def test_another_recipe_is_another_model(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {bench.place(name, quick=quick) for name in bench.NAMES for quick in (True, False)}
    assert len(places) == 8
    (tmp_path / "10m.toml").write_text((bench.RECIPES / "10m.toml").read_text() + "\nseed = 1\n")
    monkeypatch.setattr(bench, "RECIPES", tmp_path)
    assert bench.place("10m") not in places
    with pytest.raises(ShoestringError, match="no reference model '10': did you mean '10m'"):
        bench.reference_model("10")
    assert "reference_models" in sys.modules


def test_task_models_learn_from_problems_of_the_training_split(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "tasks.toml"
    portions = ('{ name = "arithmetic", digits = 2 }', '{ name = "sudoku" }')
    small.write_text("".join(f"[[portions]]\ndocuments = 30\ntask = {task}\n" for task in portions))
    read = bench.mixture
    made = read(small)
    monkeypatch.setattr(bench, "mixture", lambda: made)
    asked: list[list[str]] = []

    def run(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir(parents=True)
        (folder / "summary.json").touch()
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    places = [bench.reference_model(name) for name in bench.TASK_NAMES]
    assert len(set(places)) == len(asked) == 2
    (text,) = {word.partition("=")[2] for words in asked for word in words if word.startswith("--data.corpus=")}
    rows = [json.loads(line) for line in Path(text).read_text().splitlines()]
    documents = [row["prompt"] + row["answer"] for row in rows]
    assert len(documents) == 60
    for part in made.portions:
        task = part.task.build()
        own = {task.document(problem) for problem in task.problems("train", 0, 30)}
        assert own <= set(documents)
        assert all(task.check(problem, problem.answer).right for problem in task.problems("train", 0, 30))
    small.write_text(small.read_text().replace("digits = 2", "digits = 3"))
    assert bench.text_digest(read(small)) != bench.text_digest(made)


def test_every_task_of_the_mixture_fits_the_context(bench: Any) -> None:
    context = recipe(bench, "tasks-0.9m")["model"]["context"]
    for part in bench.mixture().portions:
        task = part.task.build()
        for problem in task.problems("test", 0, 50):
            assert len(task.document(problem).encode()) + 1 <= context
