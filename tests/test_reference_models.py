"""The reference models of the benches: their sizes, one tokenizer, and where they are kept; none is trained here."""

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

    def documents(self, say: object) -> list[str]:
        return ["a document"]


def recipe(bench: Any, name: str) -> dict[str, Any]:
    return tomllib.loads((bench.RECIPES / f"{name}.toml").read_text())


@pytest.mark.parametrize(("name", "least", "most"), [("10m", 9.5e6, 10.5e6), ("1.5m", 1.4e6, 1.6e6)])
def test_a_model_has_the_size_of_its_name(bench: Any, name: str, least: float, most: float) -> None:
    given = recipe(bench, name)
    made = Transformer(build(ModelConfig, {**given["model"], "vocabulary": given["data"]["vocabulary"]}))
    assert least <= sum(parameter.numel() for parameter in made.parameters()) <= most


def test_both_have_one_tokenizer(bench: Any) -> None:
    assert recipe(bench, "10m")["data"] == recipe(bench, "1.5m")["data"]
    assert recipe(bench, "10m")["model"]["context"] == recipe(bench, "1.5m")["model"]["context"]


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
        bench.reference_model("10m", say=lambda line: None)
    folder = bench.reference_model("10m", say=lambda line: None)
    assert bench.reference_model("10m", say=lambda line: None) == folder
    assert asked == [[str(bench.RECIPES / "10m.toml"), "--out", str(folder)], ["--resume", str(folder)]]


def test_another_recipe_is_another_model(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {bench.place(name, quick=quick) for name in bench.NAMES for quick in (True, False)}
    assert len(places) == 4
    (tmp_path / "10m.toml").write_text((bench.RECIPES / "10m.toml").read_text() + "\nseed = 1\n")
    monkeypatch.setattr(bench, "RECIPES", tmp_path)
    assert bench.place("10m") not in places
    with pytest.raises(ShoestringError, match="no reference model '10': did you mean '10m'"):
        bench.reference_model("10")
    assert "reference_models" in sys.modules
