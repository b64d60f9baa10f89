"""`shoestring compare` with the real trainer, whose runs are processes; the first one as a process itself."""

import json
import shutil
from pathlib import Path

import pytest

from tests.train.command import TINY, shoestring, shoestring_here

FLAGS = [word for word in TINY if not word.startswith("--train.sample_tokens")]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recipes")
    base, slow = folder / "base.toml", folder / "slow.toml"
    base.write_text('[optim]\nname = "adamw"\nlr = 0.01\n[schedule]\nname = "linear"\n')
    slow.write_text("[optim]\nlr = 0.0003333\n")
    return [base, slow]


@pytest.fixture(scope="module")
def compared(recipes: list[Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("compared") / "comparison"
    words = [
        "--budget=8ktok",
        f"--data.corpus={corpus}",
        "--seeds=3",
        "--tune=lr=*0.5,*1",
        "--at-once=2",
        "--margin=0.5%",
    ]
    words += ["--out", str(out), *FLAGS]
    status, shown, errors = shoestring("compare", *recipes, *words)
    assert status == 0, errors
    return out, shown


def test_a_planted_worse_arm_is_found(compared: tuple[Path, str]) -> None:
    out, shown = compared
    verdict = json.loads((out / "verdict.json").read_text())
    (row,) = verdict["comparisons"]
    assert row["verdict"] == "worse"
    assert row["pairs"] == 3
    assert row["interval"][0] > 0
    assert row["margin"] == pytest.approx(0.005 * verdict["arms"]["base"]["loss"]["mean"])
    assert verdict["arms"]["slow"]["tuning"]["chosen"] == {"optim.lr": 0.0003333}
    assert verdict["arms"]["slow"]["total_spent"]["tokens"] >= 5 * 8_000
    assert "worse" in shown
    assert (out / "report.html").stat().st_size > 10_000
    assert not list(out.glob("runs/*/checkpoints"))


def test_pairs_share_data_order_and_first_weights(compared: tuple[Path, str]) -> None:
    first = {}
    for arm in ("base", "slow"):
        lines = (compared[0] / "runs" / f"{arm}-seed-1" / "metrics.jsonl").read_text().splitlines()
        first[arm] = next(json.loads(line)["loss"] for line in lines if json.loads(line)["kind"] == "train")
    assert first["base"] == first["slow"]


def test_the_verdict_is_recomputed_offline_and_a_torn_comparison_goes_on(
    compared: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(compared[0], folder)
    whole = (folder / "verdict.json").read_text()
    (folder / "verdict.json").unlink()
    status, _, errors = shoestring_here("compare", "--from", folder)
    assert status == 0, errors
    assert (folder / "verdict.json").read_text() == whole

    lines = (folder / "runs.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "runs.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:40])
    status, shown, errors = shoestring_here("compare", "--resume", folder)
    assert status == 0, errors
    assert f"{len(lines) - 2} runs were made before" in shown
    again = json.loads((folder / "verdict.json").read_text())
    assert again["comparisons"][0]["difference"] == json.loads(whole)["comparisons"][0]["difference"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.toml"], "two recipes or more"),
        (["--from", "nowhere"], "not a comparison"),
        (["--seeds", "0"], "--seeds: 0 is not between 1 and 1000"),
        (["--tune", "lr"], "two recipes"),
        (["--margin", "half"], "--margin"),
        (["--from", "nowhere", "--margin=0.5%"], "--margin is set before the first run"),
        (["--resume", "a", "--from", "b"], "no other of the three"),
        (["a.toml", "b.toml", "--base", "b"], "--base goes with --from"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(words: list[str], said: str) -> None:
    status, _, errors = shoestring_here("compare", *words)
    assert status == 2
    assert said in errors
    assert len(errors.strip().splitlines()) == 1


def test_another_arm_may_be_the_base_of_a_verdict_that_is_not_written(compared: tuple[Path, str]) -> None:
    before = {path.name: path.read_bytes() for path in compared[0].iterdir() if path.is_file()}
    planned = json.loads(before["verdict.json"])["comparisons"][0]
    status, shown, errors = shoestring_here("compare", "--from", compared[0], "--base", "slow")
    assert status == 0, errors
    assert f"it ends {planned['difference']:.4f} nats a token lower" in shown
    assert "planned with base as its base" in shown
    assert {path.name: path.read_bytes() for path in compared[0].iterdir() if path.is_file()} == before
    status, _, errors = shoestring_here("compare", "--from", compared[0], "--base", "fast")
    assert (status, errors.strip()) == (2, "shoestring: 'fast' is no arm of the comparison: base, slow")


def test_runs_at_once_are_not_asked_of_a_folder_that_is_only_judged(tmp_path: Path) -> None:
    status, _, errors = shoestring_here("compare", "--from", tmp_path, "--at-once=2")
    assert status == 2
    assert "--at-once and --on go with runs to be made" in errors


def test_bad_arms_are_refused_before_any_run(recipes: list[Path], corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    common = [f"--data.corpus={corpus}", "--out", str(tmp_path / "out"), *FLAGS]
    for text, words, said in (
        ('budget = "1ktok"\n', [], "an arm asks for a budget"),
        ("[data]\nheldout = 0.3\n", ["--budget=2ktok"], "asks for other data"),
        ("[optim]\nlrr = 1.0\n", ["--budget=2ktok"], "did you mean 'lr'"),
        ("", ["--budget=2ktok", "--tune=lr=*x"], "a number"),
        ("", ["--budget=2ktok,5s"], "one limit"),
        ("", ["--budget=5s", "--at-once=2"], "made one at a time"),
        ('workers = 2\nsync = "muloco"\n', ["--budget=2ktok"], "other asks for transport = distributed"),
        ('workers = 2\nsync = "muloco"\ntransport = "local"\n', ["--budget=5s"], "at a budget in tokens or FLOPs"),
    ):
        other.write_text(text)
        flags = [word for word in common if not ("heldout" in text and word.startswith("--data.heldout"))]
        status, _, errors = shoestring_here("compare", recipes[0], other, *words, *flags)
        assert status == 2, errors
        assert said in errors
        assert not (tmp_path / "out").exists()


def test_an_arm_that_fails_is_told_and_not_called_better(recipes: list[Path], corpus: Path, tmp_path: Path) -> None:
    wild = tmp_path / "wild.toml"
    wild.write_text("[optim]\nlr = 1e6\n")
    words = ["--budget=4ktok", f"--data.corpus={corpus}", "--seeds=2", "--out", str(tmp_path / "out"), *FLAGS]
    status, shown, errors = shoestring_here("compare", recipes[0], wild, *words)
    assert status == 0, errors
    (row,) = json.loads((tmp_path / "out" / "verdict.json").read_text())["comparisons"]
    assert row["verdict"] in ("not comparable", "worse")
    assert "failed" in shown
