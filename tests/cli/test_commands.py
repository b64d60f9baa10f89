import json
from pathlib import Path

import pytest

from shoestring.cli.main import COMMANDS, main
from shoestring.config import build, read_toml
from shoestring.launch.request import TrainingRequest
from shoestring.train.config import RunConfig
from tests.train.command import TINY

RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"shoestring {command}" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read(recipe: Path) -> None:
    assert TrainingRequest.read(recipe, []).budget


def test_a_plan_is_printed_with_reasons_and_as_a_recipe_that_trains(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--budget=20ktok", f"--data.corpus={corpus}", *TINY]
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr().out
    assert "bound by tokens" in shown
    assert "optim.lr" in shown
    assert main(["plan", "--toml", *words]) == 0
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(capsys.readouterr().out)
    assert build(RunConfig, read_toml(recipe)).train.batch == 4
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--out", str(run)]) == 0
    assert main(["report", str(run), str(run), "--out", str(tmp_path / "both.html")]) == 0
    shown = capsys.readouterr().out
    assert "held-out loss" in shown
    assert main(["report", str(run), "--out", str(tmp_path / "one.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "one.html")}
    assert (tmp_path / "one.html").stat().st_size > 10_000
    assert main(["plan", "--json", *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["expected"]["binding"] == "tokens"
    assert printed["expected"]["tokens"] == 20_000
    assert {row["key"] for row in printed["decisions"]} >= {"optim.lr", "schedule.name"}
    assert build(RunConfig, printed["configuration"]) == build(RunConfig, read_toml(recipe))
    assert main(["plan", "--json", "--toml", *words]) == 2


def test_a_verdict_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    folder = RECIPES[0].parent.parent / "evidence" / "schedules-tokens"
    base = json.loads((folder / "verdict.json").read_text())["base"]
    assert main(["compare", "--from", str(folder), "--base", base, "--json"]) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed["folder"] == str(folder)
    assert printed["statement"] in shown.err.replace("\n", " ")
    assert {row["candidate"] for row in printed["comparisons"]}


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "plan" in capsys.readouterr().out
