"""The explorer tells what is bad from what is well refused; and each target makes a few cases, always the same ones."""

import importlib
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shoestring.errors import ShoestringError, UsageError
from tests.fuzz import expect, explore, mutations


@pytest.mark.parametrize("name", explore.names())
def test_a_target_makes_cases(name: str, tmp_path: Path) -> None:
    case = importlib.import_module(f"{explore.PACKAGE}.{name}").prepare(tmp_path)
    found = [explore.judge(case, seed) for seed in range(25)]
    outcomes = {outcome for outcome, _ in found}
    assert "refused" in outcomes
    assert [text for outcome, text in found if outcome == "bad"] == []


def refuses(draw: random.Random) -> None:
    raise UsageError("a line")


def says_nothing(draw: random.Random) -> None:
    raise UsageError("")


def asserts(draw: random.Random) -> None:
    assert not draw, "something is silently wrong"


def accepts(draw: random.Random) -> None:
    draw.random()


@pytest.mark.parametrize(
    ("case", "outcome", "words"),
    [
        (refuses, "refused", ""),
        (says_nothing, "bad", "not one printable line"),
        (asserts, "bad", "silently wrong"),
        (accepts, "accepted", ""),
    ],
)
def test_outcomes(case: explore.Case, outcome: str, words: str) -> None:
    found, text = explore.judge(case, 1)
    assert found == outcome
    assert words in text


CASES = """
import os, time
from shoestring.errors import ShoestringError, UsageError
LIMIT = 0.5

def prepare(folder):
    def case(draw):
        place = draw.random()
        if place < 0.2:
            raise UsageError("no")
        if place > 0.85:
            {bad}
    return case
"""


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("time.sleep(60)", "a hang"),
        ("os._exit(7)", "exit code 7"),
        ("{}[0]", "KeyError"),
        ("bytearray(9 << 30)", "Memory"),
    ],
)
def test_what_is_bad_is_found_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, words: str
) -> None:
    package = tmp_path / "odd_targets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "odd.py").write_text(CASES.format(bad=bad))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(explore, "START", "fork")  # everything is imported here already
    figures = explore.run("odd", 60, seed=3, most=12, package="odd_targets")
    assert figures.cases == 12
    assert figures.refused + figures.accepted > 0
    assert figures.bad
    assert all(words in text for _, text in figures.bad)
    again = explore.run("odd", 60, seed=0, only=figures.bad[0][0], package="odd_targets")
    assert [number for number, _ in again.bad] == [figures.bad[0][0]]


def test_mutations_differ_and_come_again_with_their_seed() -> None:
    plain = {"a": [1, 2.5, {"b": "text"}], "c": {"d": None}, "e": True}
    text, lines = json.dumps(plain), "\n".join(json.dumps({"row": row}) for row in range(5))
    table = 'a = [1, 2]\n[b]\nc = "text"\n'
    make: Any
    for make, given in (
        (mutations.mutate_json, text),
        (mutations.mutate_json_lines, lines),
        (mutations.mutate_toml, table),
        (mutations.mutate_bytes, text.encode()),
    ):
        made = [make(given, random.Random(seed)) for seed in range(300)]
        assert made == [make(given, random.Random(seed)) for seed in range(300)]
        assert len(set(made)) > 150
    good = 0
    for seed in range(300):
        try:
            tomllib.loads(mutations.mutate_toml(table, random.Random(seed)).decode())
            good += 1
        except (ValueError, RecursionError):
            pass
    assert good > 100


def test_the_command_line_in_the_process() -> None:
    assert "doctor" in expect.command(["--help"])
    with pytest.raises(ShoestringError, match="no command 'trian'"):
        expect.command(["trian"])
