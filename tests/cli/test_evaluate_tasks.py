"""`shoestring evaluate --task`: figures that add up, pairs, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tasks")
    words = ["train", "--budget=2ktok", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0"]
    for name, own in {"one": [], "two": ["--seed=1"]}.items():
        status, _, errors = shoestring(*words, *own, "--out", folder / name)
        assert status == 0, errors
    return {name: folder / name for name in ("one", "two")}


ASKED = ("--task=arithmetic", "--task.digits=1", "--task.operations=+", "--problems=6")


def test_several_places_are_asked_the_same_problems(runs: dict[str, Path]) -> None:
    status, output, errors = shoestring("evaluate", runs["one"], runs["two"], *ASKED, "--json")
    assert status == 0, errors
    found: dict[str, Any] = json.loads(output)
    assert found["task"] == {"name": "arithmetic", "digits": 1, "operations": "+"}
    assert (found["split"], found["problems"], found["samples"], found["temperature"]) == ("test", 6, 1, 0.0)
    one, two = found["places"]
    assert [each["id"] for each in one["answers"]] == [each["id"] for each in two["answers"]]
    for place in (one, two):
        right = sum(each["right"] for each in place["answers"])
        assert place["accuracy"]["value"] == pytest.approx(right / 6)
        assert place["accuracy"]["low"] <= place["accuracy"]["value"] <= place["accuracy"]["high"]
        spent = place["accounts"]["evaluation"]
        assert place["flops_per_problem"] == pytest.approx(spent["flops"] / 6)
        assert place["written_per_problem"] == pytest.approx(spent["written"] / 6)
        assert place["seconds_per_problem"] == pytest.approx(place["seconds"] / 6)
    (each,) = found["differences"]
    assert each["place"] == str(runs["two"])
    assert each["accuracy"]["value"] == pytest.approx(two["accuracy"]["value"] - one["accuracy"]["value"])
    assert 0 < each["p_value"] <= 1


def test_it_says_what_it_found(runs: dict[str, Path]) -> None:
    status, output, errors = shoestring("evaluate", runs["one"], runs["two"], *ASKED, "--samples=2", "--temperature=1")
    assert status == 0, errors
    for said in (
        "asked  6 problems of arithmetic (test), 2 answers to each",
        "% right",
        "exact test: p =",
        "tokens written",
    ):
        assert said in output, output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task=arithmetics"], "did you mean 'arithmetic'"),
        (["--task=arithmetic", "--task.digits=0"], "digits = 0"),
        (["--task=arithmetic", "--task.digit=1"], "unknown key 'arithmetic.digit': did you mean 'digits'"),
        (["--task=recall", "--task.letters=1"], "too many for keys"),
        (["--task=arithmetic", "--data.corpus=x"], "--data has no meaning with --task"),
        (["--task=arithmetic", "--tokens=5"], "--tokens goes with text that is measured"),
        (["--task=arithmetic", "--all"], "--all goes with text that is measured"),
        (["--problems=5"], "--problems goes with --task NAME"),
        (["--seed=0"], "--seed goes with --task NAME"),
        (["--task.digits=2"], "--task.OPTION goes with --task NAME"),
        (["--task=arithmetic", "--samples=2", "--temperature=0"], "one answer 2 times"),
        (["--task=arithmetic", "--temperature=-1"], "temperature must be at least 0"),
        (["--task=exact_match", "--task.path=none.jsonl"], "no such file: none.jsonl"),
        (["--task=arithmetic", "--chat"], "no chat template"),
        (["--task=needle"], "tokens, and this model reads 32"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(words: list[str], said: str, runs: dict[str, Path]) -> None:
    status, _, errors = shoestring("evaluate", runs["one"], *words)
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1
