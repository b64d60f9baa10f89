"""A run's folder: one process at a time, gone on with as it began, from any folder, whatever was put or damaged in it."""

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table

from shoestring.cli.screen import Screen
from shoestring.config import build, to_toml
from shoestring.errors import UsageError
from shoestring.train.config import RunConfig
from shoestring.train.origin import absolute
from shoestring.train.run_folder import RunFolder
from shoestring.train.trained import load_trained
from shoestring.train.work_folder import held
from tests.train.command import TINY, newest_weights, shoestring_here

STEPS = 24


@pytest.fixture(scope="module")
def words(corpus: Path) -> list[str]:
    return [f"--budget={STEPS * 128}tok", f"--data.corpus={corpus}", "--train.checkpoint_every=0.000001", *TINY]


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    status, _, errors = shoestring_here("train", "--out", run, *words)
    assert status == 0, errors
    shutil.rmtree(run / "transformers")
    return run


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A run that was stopped one step before its end."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
    return run


def refused(*words: object) -> str:
    """The one line that a command says when it is asked wrongly, or cannot go on."""
    status, _, errors = shoestring_here(*words)
    assert status in (1, 2), errors
    assert errors.count("\n") == 1
    assert errors.strip().isprintable(), errors
    return errors


def test_two_processes_do_not_work_in_one_run(stopped: Path, finished: Path, words: list[str]) -> None:
    with held(stopped):
        line = refused("train", "--resume", stopped)
        assert f"another process (process {os.getpid()}) is at work in {stopped}" in line
        assert "exists and is not empty" in refused("train", "--out", stopped, *words)
        assert load_trained(stopped).step == STEPS - 1  # who reads waits for nobody
    assert shoestring_here("train", "--resume", stopped)[0] == 0
    assert newest_weights(stopped) == newest_weights(finished)


def test_nor_in_one_comparison_or_one_set_of_experts(tmp_path: Path) -> None:
    for command, recipe in (("compare", "design.toml"), ("experts", "experts.toml")):
        folder = tmp_path / command
        (folder / "arms").mkdir(parents=True)
        shutil.copyfile(Path("evidence/default-seconds/design.toml"), folder / recipe)
        for arm in Path("evidence/default-seconds/arms").iterdir():
            shutil.copyfile(arm, folder / "arms" / arm.name)
        with held(folder):
            assert "is at work in" in refused(command, "--resume", folder)


def test_a_folder_that_is_being_begun_is_taken(tmp_path: Path, words: list[str]) -> None:
    with RunFolder.create(tmp_path / "run"):
        assert "is at work in" in refused("train", "--out", tmp_path / "run", *words)


def test_stopped_before_the_first_step_a_folder_is_begun_again(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def killed(*given: object) -> None:
        raise Killed

    class Killed(BaseException):
        """As far as the run's own cleaning up goes, a kill -9: it does none."""

    monkeypatch.setattr("shoestring.train.work_folder.Kind._discard", lambda *given: None)
    monkeypatch.setattr("shoestring.launch.alone.start", killed)
    with pytest.raises(Killed):
        shoestring_here("train", "--out", run, *words)
    assert {"lock", "ledger.jsonl", "decisions.json", "tokenizer"} <= {path.name for path in run.iterdir()}
    assert f"begin it again with --out {run}" in refused("train", "--resume", run)
    monkeypatch.undo()
    with RunFolder.create(run):
        assert [path.name for path in run.iterdir()] == ["lock"]


def test_failed_before_the_first_step_nothing_is_left(tmp_path: Path, words: list[str]) -> None:
    refused("train", "--out", tmp_path / "run", *words, "--data.corpus=/nowhere")
    refused("train", "--out", tmp_path / "run", *words, "--model.context=100000")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_s_is_never_removed(tmp_path: Path) -> None:
    for name in ("precious.txt", "tokenizer", "workers", "token"):
        folder = tmp_path / f"with-{name}"
        folder.mkdir()
        (folder / name).write_text("kept")
        with pytest.raises(UsageError, match="exists and is not empty"), RunFolder.create(folder):
            pass
        assert (folder / name).read_text() == "kept"


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("seed = 0", "seed = 1", "seed was 0 and is 1"),
        (f'budget = "{STEPS * 128}tok"', 'budget = "9ktok"', "budget was 3072tok and is 9ktok"),
        ("width = 32", "width = 64", "model.width was 32 and is 64"),
        ("batch = 4", "batch = 4\nnonsense = 1", "train.nonsense was absent and is 1"),
        ("batch = 4\n", "", "train.batch was 4 and is absent"),
    ],
)
def test_an_edited_configuration_is_refused(stopped: Path, was: str, now: str, said: str) -> None:
    path = stopped / "config.toml"
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, now, 1))
    for words in (("train", "--resume", stopped), ("generate", stopped, "line")):
        line = refused(*words)
        assert f"{path} was edited since the run began: {said}" in line
        assert f"--model.base {stopped}" in line
    path.write_text(f"# a comment changes nothing\n{text}")
    RunFolder.open(stopped).read_config()


def test_a_run_of_an_earlier_version_is_taken_as_it_is_and_that_is_said(stopped: Path, finished: Path) -> None:
    (stopped / "origin.json").unlink()
    status, output, errors = shoestring_here("train", "--resume", stopped)
    assert status == 0, errors
    assert "begun by an earlier version" in output
    assert newest_weights(stopped) == newest_weights(finished)
    assert (stopped / "origin.json").exists()


def test_a_run_goes_on_from_another_folder_and_with_a_corpus_that_was_moved(
    stopped: Path, finished: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(corpus, "texts")
    run, config = RunFolder(stopped).path, RunFolder(stopped).read_config()
    origin = RunFolder(stopped).read_origin()
    assert origin is not None
    placed = absolute(replace(config, data=replace(config.data, corpus="texts")))
    assert placed.data.corpus == str(tmp_path / "texts")
    (run / "config.toml").write_text(to_toml(placed))  # as any editor may: it is where the text lies, not what it is
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    os.rename("../texts", "moved")
    assert f"say where it is with --resume {run} --data.corpus PATH" in refused("train", "--resume", run)
    Path("moved/000.txt").rename("000.txt")
    assert "is not what this run began with" in refused("train", "--resume", run, "--data.corpus", "moved")
    Path("000.txt").rename("moved/000.txt")
    line = refused("train", "--resume", run, "--data.corpus", "moved", "--optim.lr=1")
    assert "--optim.lr=1: a resumed run keeps its configuration" in line
    assert shoestring_here("train", "--resume", run, "--data.corpus", "moved")[0] == 0
    assert newest_weights(run) == newest_weights(finished)
    assert RunFolder(run).read_config().data.corpus == str(tmp_path / "elsewhere" / "moved")


def deep(path: Path) -> None:
    path.write_text("[" * 5000 + "\n" + path.read_text())


def first_line(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text + "\n" + path.read_text())


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.jsonl", deep),
        ("metrics.jsonl", first_line("not JSON")),
        ("metrics.jsonl", first_line('{"kind": "train"}')),
        ("ledger.jsonl", deep),
        ("ledger.jsonl", first_line("[]")),
        ("ledger.jsonl", first_line('{"seconds": {"compute": "x"}}')),
        ("ledger.jsonl", first_line('{"tokens": null}')),
        ("summary.json", lambda path: path.write_text("[]")),
        ("origin.json", lambda path: path.write_text("{}")),
        ("origin.json", lambda path: path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))),
        ("milestones.json", lambda path: path.write_text('[{"share": 1}]')),
    ],
)
def test_damage_is_named_by_file(stopped: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(stopped / name)
    assert f"{stopped / name}" in refused("train", "--resume", stopped)


def test_another_tokenizer_in_the_folder_is_refused(stopped: Path) -> None:
    path = stopped / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    for damaged in (text.replace('"a"', '"\\u0111"', 1), "[" * 5000, text.replace('"ByteLevel"', '"ByteLevels"')):
        assert damaged != text
        path.write_text(damaged)
        assert str(path.parent) in refused("generate", stopped, "line")


@pytest.mark.usefixtures("pages")
def test_names_are_printed_as_they_are_and_move_no_cursor(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "a[b]c[/b] :smile: \x1b[31m"
    run.parent.mkdir(parents=True)
    stopped.rename(run)
    status, output, errors = shoestring_here("train", "--resume", run)
    assert status == 0, errors
    shown = str(run).replace("\x1b", "\\x1b")
    assert f"report: {shown}/report.html\n" in output
    assert "\x1b" not in output + errors
    assert shown in refused("train", "--resume", run)
    status, output, errors = shoestring_here("report", run)
    assert shown in output
    assert "\x1b" not in output + errors


def test_a_screen_takes_no_text_for_markup() -> None:
    output = io.StringIO()
    screen = Screen(file=output, width=200)
    table = Table(box=None)
    table.add_column("a[b]")
    table.add_row("[/b] \x1b]0;title\x07 :smile:")
    screen.print("a[b]c\u202e\n\tend", style="bold")
    screen.print(table)
    assert output.getvalue().split("\n")[:2] == ["a[b]c\\u202e", "        end"]
    assert "[/b] \\x1b]0;title\\x07 :smile:" in output.getvalue()


def test_a_new_run_s_files_are_named_by_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.json").write_text("")
    asked = {
        "budget": "1s",
        "model": {},
        "data": {"corpus": "../*.txt", "tokenizer": "t.json", "documents": "d"},
    }
    found = absolute(build(RunConfig, asked))
    assert found.data.corpus == f"{tmp_path}/../*.txt"
    assert found.data.tokenizer == f"{tmp_path}/t.json"
    assert found.data.documents == f"{tmp_path}/d"
    for corpus in ("python-stdlib", "hf:some/name"):
        assert absolute(build(RunConfig, asked | {"data": {"corpus": corpus}})).data.corpus == corpus
    assert absolute(build(RunConfig, {"budget": "1s", "model": {}})).data.tokenizer == "bpe"
