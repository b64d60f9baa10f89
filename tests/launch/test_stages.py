"""Stages within one budget: what each comes to, and going on within one and between two; wrong files in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shoestring.train.loop import Loop
from tests.train.command import TINY, newest_weights
from tests.train.command import shoestring_here as shoestring

FILE = """
budget = "3ktok"
old = "{corpus}"
problems = 5
[task]
name = "arithmetic"
digits = 1

[[stage]]
name = "first"
share = 0.5
[stage.run]
{tiny}

[[stage]]
name = "second"
share = 0.25
method = "lora"
replay = 0.3
[stage.run]
{run}

[[stage]]
name = "third"
share = 0.25
[stage.run]
{run}
[stage.run.objective]
name = "distillation"
teacher = "{teacher}"
"""


def keys(corpus: Path, *leave: str) -> str:
    """TINY as keys of TOML."""
    lines = [f'data.corpus = "{corpus}"', "train.checkpoint_every = 1e-3", "train.keep = 99"]
    for word in TINY:
        key, _, value = word.removeprefix("--").partition("=")
        if not key.startswith(leave):
            lines.append(f"{key} = {value}" if value.replace(".", "").isdigit() else f'{key} = "{value}"')
    return "\n".join(lines)


@pytest.fixture(scope="module")
def file(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    status, _, errors = shoestring(
        "train", "--budget=1ktok", f"--data.corpus={corpus}", *TINY, "--out", folder / "teacher"
    )
    assert status == 0, errors
    own = keys(corpus, "model.", "data.tokenizer", "execution.threads")
    text = FILE.format(corpus=corpus, tiny=keys(corpus), run=own, teacher=folder / "teacher")
    (folder / "stages.toml").write_text(text)
    return folder / "stages.toml"


class Killed(BaseException):
    """What no part of the program is ready for."""


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have the process "die" before step `number`, counted over all stages. Returns what ends that."""
    step, count = Loop._step, 0

    def dying(loop: Loop, progress: float) -> None:
        nonlocal count
        if count == number:
            raise Killed
        count += 1
        step(loop, progress)

    monkeypatch.setattr(Loop, "_step", dying)
    return lambda: monkeypatch.setattr(Loop, "_step", step)


def test_stages_share_a_budget_and_go_on_within_and_between(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, shown, errors = shoestring("stages", file, "--out", tmp_path / "whole", "--json")
    assert status == 0, errors
    found = json.loads(shown)
    first, second, third = found["stages"]
    assert (first["tokens"], second["tokens"]) == pytest.approx((1536, 768), abs=128)
    assert found["tokens"] == first["tokens"] + second["tokens"] + third["tokens"]
    assert second["tuning"]["old"].keys() >= {"before", "after", "forgotten"}
    assert "tuning" not in third
    assert all(0 <= row["accuracy"] <= 1 for row in found["stages"])
    accounts = json.loads((tmp_path / "whole" / "third" / "summary.json").read_text())["accounts"]
    assert accounts["teacher"]["flops"] > 0
    steps = [row["steps"] for row in found["stages"]]
    alive = killed_at(steps[0] + steps[1] // 2, monkeypatch)
    with pytest.raises(Killed):
        shoestring("stages", file, "--out", tmp_path / "killed")
    alive()
    assert not (tmp_path / "killed" / "summary.json").exists()
    before = (tmp_path / "killed" / "first" / "ledger.jsonl").read_bytes()
    status, _, errors = shoestring("stages", "--resume", tmp_path / "killed")
    assert status == 0, errors
    assert (tmp_path / "killed" / "first" / "ledger.jsonl").read_bytes() == before  # what is finished is not done again
    for stage in ("first", "second", "third"):
        assert newest_weights(tmp_path / "killed" / stage) == newest_weights(tmp_path / "whole" / stage)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("share = 0.5", "share = 0.8", "come to 1.3, and the budget is 1"),
        ('name = "third"', 'name = "second"', "two stages are named 'second'"),
        ('method = "lora"', 'method = "lore"', "there is no method 'lore'"),
        ('name = "first"', 'nome = "first"', "'stage.0.name' is needed"),
        ('budget = "3ktok"', "", "has no budget"),
        ('name = "first"\nshare = 0.5', 'name = "first"\nshare = 0.5\nmethod = "full"', "name it with base = PLACE"),
    ],
)
def test_wrong_files_are_one_line(old: str, new: str, said: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text(file.read_text().replace(old, new, 1))
    status, _, errors = shoestring("stages", tmp_path / "wrong.toml", "--out", tmp_path / "out")
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
