"""What a user can get wrong, each answered in one clear line with the right exit status."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.launch.request import TrainingRequest
from tests.train.command import TINY, newest_weights, shoestring


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """(exit status, the one line on standard error)."""
    status = main([str(word) for word in words])
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1, errors
    assert errors.startswith("shoestring: ")
    return status, errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tran"], "did you mean 'train'"),
        (["train", "--budget", "0s"], "buys nothing"),
        (["train", "--budget", "2parsecs"], "unknown unit"),
        (["train", "--budget", "5usd"], "dollars"),
        (["train", "--optm.lr", "1"], "did you mean 'optim'"),
        (["train", "--optim.lrr", "1"], "did you mean 'lr'"),
        (["train", "--optim.lr", "-1"], "optim: muon_hypersphere.lr = -1"),
        (["train", "--optim.lr", "-1"], "(--optim.lr)"),
        (["train", "--train.batch", "0"], "train.batch = 0"),
        (["train", "--train.batch", "0"], "(--train.batch)"),
        (["train", "--sync", "muloco", "--sync.codec", "linear", "--sync.codec.bits", "5"], "(--sync.codec.bits)"),
        (["train", "--workers", "3", "--sync", "muloco", "--train.batch", "8"], "(--train.batch)"),
        (["train", "--execution.threads", "-1"], "(--execution.threads)"),
        (["train", "--execution.threads", "1000000"], "execution.threads = 1000000"),
        (["train", "--optim.steps", "9223372036854775807"], "(--optim.steps)"),
        (["train", "--elastic.patience", "inf"], "(--elastic.patience)"),
        (["train", "--optim", "adamw", "--optim.epsilon", "1e308"], "(--optim.epsilon)"),
        (["train", "--model.width", "1" + "0" * 30], "more than 64 bits"),
        (["train", "--model.width", "1048577"], "(--model.width)"),
        (["train", "--model.width", "9" * 5000], "model.width"),
        (["train", "--seed", "-1"], "(--seed)"),
        (["train", "--workers", "100000"], "(--workers)"),
        (["train", "--data.vocabulary", "2147483648"], "(--data.vocabulary)"),
        (["train", "--train.sample", "\ud800"], "not UTF-8 text"),
        (["train", "--a" + ".a" * 3000, "1"], "nested more than 32 levels"),
        (["train", "--optim.betas", "[" * 3000 + "]" * 3000], "unknown key"),
        (["train", "--budget", "9" * 100_000], "too long"),
        (["compare", "a.toml", "b.toml", "--seeds", "1000000000"], "--seeds: 1000000000 is not between 1 and 1000"),
        (["compare", "a.toml", "b.toml", "--seeds", "9" * 5000], "is not a whole number"),
        (["generate", "/nowhere", "def", "--top-k", "-1"], "(--top-k)"),
        (["generate", "/nowhere", "def", "--tokens", "0"], "--tokens"),
        (["experts", "--experts", "1"], "--experts: 1 is not between 2 and 1024"),
        (["experts", "--experts.temperature", "0"], "(--experts.temperature)"),
        (["train", "--train.batch", "6", "--train.micro_batch", "4"], "does not divide"),
        (["train", "--model.heads", "3", "--model.width", "64"], "heads"),
        (["train", "--schedule", "cosin"], "did you mean 'cosine'"),
        (["train", "--data.corpus", "/nowhere/at/all"], "/nowhere/at/all"),
        (["train", "--memory", "tiny"], "memory"),
        (["train", "absent.toml"], "no such file"),
        (["train", "--resume", "/nowhere"], "no such run"),
        (["train", "--from-step", "3"], "--from-step goes with --resume"),
        (["train", "one.toml", "two.toml"], "two.toml"),
        (["plan", "--budget"], "needs a value"),
        (["generate", "/nowhere", "def"], "is no model that can be opened"),
        (["report", "/nowhere"], "/nowhere"),
        (["report"], "RUN"),
        (["methods", "optm"], "did you mean 'optim'"),
        (["doctor", "--fast"], "unknown argument '--fast'"),
    ],
)
def test_wrong_words(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    status, line = refused(capsys, *words)
    assert status == 2
    assert said in line


def test_wrong_corpora(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "tiny.txt").write_text("a few words")
    (tmp_path / "nothing.txt").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    for name in ("empty", "binary.bin", "tiny.txt", "nothing.txt", "broken.jsonl"):
        words = ("train", "--budget=1s", f"--data.corpus={tmp_path / name}", "--out", tmp_path / f"run-{name}", *TINY)
        status, line = refused(capsys, *words)
        assert status == 2, line
        assert "Traceback" not in line


def test_broken_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("budget = '2m'\n[optim\n")
    assert "is not TOML" in refused(capsys, "train", recipe)[1]
    for broken, said in (
        ("a = " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("[" + ".".join(["a"] * 3000) + "]", "nested more than 32 levels"),
        (f"seed = {'9' * 5000}", "is not TOML"),
        (f"seed = {10**30}", "more than 64 bits"),
    ):
        recipe.write_text(broken)
        assert said in refused(capsys, "train", recipe)[1]
    recipe.write_text("budget = '2m'\n[optim]\nname = 'muon'\nmomentun = 0.9\n")
    assert "did you mean 'momentum'" in refused(capsys, "train", recipe)[1]


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    words = [
        "train",
        "--budget=12800tok",
        f"--data.corpus={corpus}",
        "--out",
        str(run),
        "--train.checkpoint_every=0.05",
    ]
    assert main([*words, *TINY]) == 0
    return run


@pytest.fixture
def nothing_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where data is prepared, or anything measured."""

    def refuse(*given: object, **more: object) -> None:
        pytest.fail("it has begun to work")

    for name in ("prepare", "try_out"):
        monkeypatch.setattr(f"shoestring.launch.request.{name}", refuse)
    monkeypatch.setattr("shoestring.train.starting.settle", refuse)


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_gpu_that_is_not_there_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    nothing_prepared: None,
    tmp_path: Path,
    command: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    status, line = refused(capsys, command, "--execution.device", "cuda")
    assert status == 2
    assert "torch finds no GPU here" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--model.width=64"], "model.width = 64"), (["--model.layers=3"], "model.layers = 3"), ([], "")],
)
def test_a_start_of_another_shape_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], nothing_prepared: None, finished: Path, more: list[str], said: str
) -> None:
    words = ["--model.base", str(finished), *more]
    if said:
        status, line = refused(capsys, "train", *words)
        assert status == 2
        assert f"{said} is not what {finished} has" in line
    else:
        assert (
            TrainingRequest.read(None, words).asked["model"]["width"] == 32
        )  # left open, the shape is that of the start


def test_a_run_is_not_written_over(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    status, line = refused(capsys, "train", "--budget=1s", "--out", finished)
    assert status == 2
    assert "exists and is not empty" in line


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(
    capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path, damage: str
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "summary.json").unlink()
    steps = sorted((run / "checkpoints").iterdir())
    assert len(steps) == 2
    path = steps[-1] / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for words in (("generate", run, "line"), ("train", "--resume", run)):
        status = main([str(word) for word in words])
        errors = capsys.readouterr().err
        assert status == 1
        assert "model.safetensors is damaged" in errors
        assert f"--from-step {int(steps[0].name.removeprefix('step-'))}" in errors
    assert main(["train", "--resume", str(run), "--from-step", steps[0].name.removeprefix("step-")]) == 0
    assert newest_weights(run) == newest_weights(finished)


def test_generate_streams_and_is_seeded(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        assert main(["generate", str(finished), "line", "--tokens", "20", "--seed", str(seed)]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("line")
    status, line = refused(capsys, "generate", finished, "line", "--top-p", "2")
    assert status == 2
    assert "top_p" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small file system needs root")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_nothing_saved_is_lost(corpus: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    bigger = [
        "--model.layers=2",
        "--model.width=128",
        "--model.heads=2",
        "--train.checkpoint_every=0.1",
        "--train.keep=9",
    ]
    status, _, errors = shoestring("train", "--budget=1Mtok", f"--data.corpus={corpus}", "--out", run, *TINY, *bigger)
    assert status == 1, errors
    assert "no space left" in errors.lower()
    assert "Traceback" not in errors
    assert errors.count("\n") == 1
    for folder in (run / "checkpoints").iterdir():
        assert not folder.name.endswith(".tmp")


def test_a_read_only_folder_is_said(corpus: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, _, errors = shoestring(
        "train", "--budget=1s", f"--data.corpus={corpus}", "--out", small_disk / "run", *TINY
    )
    assert status == 1
    assert "read-only" in errors.lower()
    assert errors.count("\n") == 1
