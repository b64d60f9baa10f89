"""`shoestring compare --models`: models that exist, on the same bytes of text, at the same bytes or seconds."""

import json
from pathlib import Path

import pytest

from shoestring.base.text import Text
from shoestring.compare.models import PIECES, judge_models, said, used
from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {"long": ["--budget=8ktok"], "short": ["--budget=1ktok"], "wide": ["--budget=1ktok", "--model.hidden=256"]}
    for name, words in made.items():
        status, _, errors = shoestring(
            "train", *words, f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0", "--out", folder / name
        )
        assert status == 0, errors
    return {name: folder / name for name in made}


def test_as_many_bytes_are_judged_and_making_stands_apart(runs: dict[str, Path], corpus: Path) -> None:
    places = [runs["long"], runs["short"], runs["wide"]]
    status, output, errors = shoestring("compare", "--models", *places, "--json", "--text-tokens=4000")
    assert status == 0, errors
    found = json.loads(output)
    same, other = found["comparisons"]
    assert same["verdict"] == "worse"
    assert same["pieces"] == PIECES
    assert same["difference"] > 0
    assert other["verdict"] == "not comparable"
    assert "more bytes than" in other["flags"][-1]
    long, short, wide = found["models"]
    assert long["using"]["bytes"] == short["using"]["bytes"] < wide["using"]["bytes"]
    assert long["making"]["flops"] > short["making"]["flops"] > 0
    assert long["evaluation"]["flops"] > 0
    assert "made for" in errors
    status, _, errors = shoestring("evaluate", *places[:2], "--tokens=4000", "--json")
    assert status == 0, errors


def test_a_model_is_no_better_than_itself(runs: dict[str, Path]) -> None:
    text = Text(tuple(f"Line {n} of many lines." * 9 for n in range(40)), "none", None, 40)
    one = used(str(runs["short"]), text)
    again = used(f"{runs['short']}/", text)
    (weighed,) = judge_models([one, again], "bytes", 0.05)
    assert weighed.verdict == "no difference shown"
    assert "at the same bytes" in said(weighed, "bytes")
    assert one.outcome.spent["seconds"] > 0
    assert one.made is not None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--models", "LONG"), "needs two models or more"),
        (("--models", "LONG", "SHORT", "--tune", "lr=1"), "--models goes with places alone: leave tune out"),
        (("--models", "LONG", "LONG"), "of different places"),
        (("--hold", "bytes", "a.toml", "b.toml"), "--hold goes with --models"),
        (("--models", "LONG", "nowhere"), "no model that can be opened"),
    ],
)
def test_what_cannot_be_is_one_line(runs: dict[str, Path], words: tuple[str, ...], line: str) -> None:
    given = [str(runs.get(word.lower(), word)) if word.isupper() else word for word in words]
    status, _, errors = shoestring("compare", *given)
    assert status == 2
    assert line in errors
