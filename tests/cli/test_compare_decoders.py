"""`shoestring compare` of ways to decode: a folder, a verdict, judged again and gone on with; what is refused."""

import json
from pathlib import Path

import pytest

from tests.train.command import TINY
from tests.train.command import shoestring_here as shoestring

RECIPES = {
    "plain": "[decode]\nmax_new_tokens = 6\n",
    "ngram": '[decode]\ndrafter = { name = "ngram", most = 3 }\n',
    "warm": "[decode]\nsampling = { temperature = 1.5 }\n",
    "train": '[optim]\nname = "adamw"\n',
    "mixed": '[decode]\n[optim]\nname = "adamw"\n',
}


@pytest.fixture(scope="module")
def recipes(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("decoders")
    words = ["train", "--budget=2ktok", f"--data.corpus={corpus}", *TINY, "--train.sample_tokens=0"]
    status, _, errors = shoestring(*words, "--out", folder / "run")
    assert status == 0, errors
    for name, text in RECIPES.items():
        (folder / f"{name}.toml").write_text(text)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"line {n}"}) + "\n" for n in range(8)))
    return {path.stem: path for path in folder.iterdir()}


def compared(recipes: dict[str, Path], *words: object) -> tuple[int, str, str]:
    place = f"--decode.place={recipes['run']}"
    return shoestring("compare", *words, place)


def test_a_comparison_is_made_judged_again_and_gone_on_with(recipes: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [recipes["plain"], recipes["ngram"], "--prompts", recipes["prompts"], "--seeds=2", "--out", out]
    status, shown, errors = compared(recipes, *words)
    assert status == 0, errors
    verdict = json.loads((out / "verdict.json").read_text())
    (row,) = verdict["comparisons"]
    assert (row["candidate"], row["base"], row["items"], row["seeds"]) == ("ngram", "plain", 8, 2)
    assert row["changed"] == 0
    assert row["verdict"] in ("better", "worse", "no difference shown")
    assert row["interval"][0] < row["ratio"] < row["interval"][1]
    assert verdict["terms"]["keep"] == "text"
    assert row["sentence"] in shown.replace("\n", " ")
    assert {path.name for path in (out / "arms").iterdir()} == {"plain.toml", "ngram.toml"}
    status, again, errors = shoestring("compare", "--from", out, "--json")
    assert status == 0, errors
    assert json.loads(again)["comparisons"] == verdict["comparisons"]
    lines = (out / "rounds.jsonl").read_text().splitlines(keepends=True)
    (out / "rounds.jsonl").write_text(lines[0])
    status, shown, errors = shoestring("compare", "--resume", out)
    assert status == 0, errors
    assert "seed 1, 2 of 2" in shown
    assert (out / "rounds.jsonl").read_text().startswith(lines[0])
    assert len((out / "rounds.jsonl").read_text().splitlines()) == 2
    status, _, errors = shoestring("compare", "--again", out, "--out", tmp_path / "again")
    assert status == 0, errors
    for name in ("terms.toml", "prompts.jsonl", "arms/ngram.toml"):
        assert (tmp_path / "again" / name).read_text() == (out / name).read_text()
    assert json.loads((tmp_path / "again" / "verdict.json").read_text())["comparisons"][0]["changed"] == 0


def test_text_that_differs_is_no_comparison_unless_its_loss_is_kept(recipes: dict[str, Path], tmp_path: Path) -> None:
    words = [recipes["plain"], recipes["warm"], "--task=arithmetic", "--task.digits=2", "--items=5", "--seeds=1"]
    status, shown, errors = compared(recipes, *words, "--out", tmp_path / "text")
    assert status == 0, errors
    assert "not comparable" in shown
    assert "of the texts are not the base's" in shown
    status, shown, errors = compared(recipes, *words, "--keep=loss", "--margin=9", "--out", tmp_path / "loss", "--json")
    assert status == 0, errors
    (row,) = json.loads(shown)["comparisons"]
    assert row["verdict"] != "not comparable"
    assert row["kept"]["interval"][1] < 9
    assert row["changed"] > 0


@pytest.mark.parametrize(
    ("names", "words", "said"),
    [
        (["plain"], ["--task=arithmetic"], "two recipes or more"),
        (["plain", "train"], ["--task=arithmetic"], "some recipes have a section [decode] and some have none"),
        (["plain", "mixed"], ["--task=arithmetic"], "a way to decode has a section [decode] alone, not optim"),
        (["plain", "ngram"], [], "give --prompts PATH or --task NAME"),
        (["plain", "ngram"], ["--task=arithmetic", "--prompts=x"], "one of them"),
        (["plain", "ngram"], ["--prompts=x"], "no such file: x"),
        (["plain", "ngram"], ["--task=arithmetic", "--keep=all"], "keep 'text', 'loss' or 'nothing'"),
        (["plain", "ngram"], ["--task=arithmetic", "--keep=loss"], "loss is kept within a margin"),
        (["plain", "ngram"], ["--task=arithmetic", "--margin=1%"], "a margin is of a figure that is kept"),
        (["plain", "ngram"], ["--task=arithmetic", "--tune=lr=1,2"], "--tune goes with ways to train"),
        (["plain", "ngram"], ["--task=arithmetic", "--at-once=2"], "--at-once and --on go with ways to train"),
        (["plain", "ngram"], ["--task=arithmetic", "--decode.row=2"], "unknown key 'row': did you mean 'rows'"),
        (["plain", "ngram"], ["--task=arithmetic", "--decode.rows=60"], "fewer than an item has"),
        (["train", "train"], ["--items=3"], "--items goes with recipes that have a section [decode]"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(
    names: list[str], words: list[str], said: str, recipes: dict[str, Path], tmp_path: Path
) -> None:
    more = ["--items=1", "--task.digits=1", "--task.operations=+"] if "--decode.rows=60" in words else []
    status, _, errors = compared(recipes, *(recipes[name] for name in names), *words, *more, "--out", tmp_path / "out")
    assert status == 2, errors
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()
