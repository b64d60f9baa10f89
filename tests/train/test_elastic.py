"""`shoestring train --transport torchft` and `shoestring worker`: a run whose workers come and go, and who may not come."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoestring import __version__
from shoestring.config import build, overrides
from shoestring.data.prepare import prepare
from shoestring.launch import host, participant
from shoestring.launch.elastic import accounts
from shoestring.launch.host import Host
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import RunFolder
from tests.train.command import TINY, Command, newest_weights, shoestring_here, start

ELASTIC = (
    "--workers=2 --transport=torchft --sync=muloco --sync.every=4 --sync.codec=2bit --train.batch=8 --elastic.silence=2 "
    "--elastic.exchange=5 --train.checkpoint_every=0.1"
).split()


def until(holds: Callable[[], Any], process: Command, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def rounds(run: Path, worker: str) -> list[dict[str, Any]]:
    path = run / "workers" / worker / "rounds.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def pid_of(run: Path, worker: str) -> int:
    return int((run / "workers" / worker / "lock").read_text())


def balanced(found: dict[str, Any]) -> bool:
    return all(each["trained"] == each["seen"] + each["discarded"] for each in [found, *found["workers"].values()])


def test_a_run_ends_although_a_worker_was_killed(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("train", "--budget=16ktok", f"--data.corpus={corpus}", "--out", out, *TINY, *ELASTIC)
    until(lambda: len(rounds(out, "1")) > 2, process)
    os.kill(pid_of(out, "1"), signal.SIGKILL)
    shown, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (shown, errors)
    assert "worker 1 was ended by SIGKILL; the run goes on without it" in shown
    assert "Traceback" not in errors
    assert (out / "token").stat().st_mode & 0o777 == 0o600
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stopped"] == "finished"
    assert summary["tokens"] >= 16_000
    found = summary["accounts"]
    assert balanced(found)
    assert found["seen"] == summary["tokens"]
    assert found["workers"]["0"]["discarded"] == 0
    assert found["workers"]["1"]["discarded"] <= 4 * 4 * 32  # a period of four steps of four sequences of 32, at most
    ended = [each for each in rounds(out, "0") if each["committed"]]
    assert {len(each["ids"]) for each in ended} == {1, 2}
    assert newest_weights(out) == newest_weights(out / "workers" / "0")


@pytest.mark.slow
def test_a_worker_comes_back_another_joins_and_all_may_stop_and_go_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("train", "--budget=300ktok", f"--data.corpus={corpus}", "--out", out, *TINY, *ELASTIC)
    until(lambda: len(rounds(out, "1")) > 2, process)
    os.kill(pid_of(out, "1"), signal.SIGKILL)
    until(lambda: rounds(out, "0")[-1]["ids"] == ["0"], process)
    shown = ""
    assert process.stdout is not None
    while "workers may join at" not in shown:
        shown = process.stdout.readline()
    where = shown.split(";")[0].split()[-1]
    token = {"SHOESTRING_TOKEN": (out / "token").read_text().strip()}
    again = ["worker", "--lighthouse", where, out / "config.toml"]
    guest = start(*again, "--out", tmp_path / "guest", **token)
    back = start(*again, "--out", out / "workers" / "1", **token)
    until(lambda: len(rounds(out, "0")[-1]["contributed"]) == 3, process)
    process.send_signal(signal.SIGINT)
    until_end, errors = process.communicate(timeout=60)
    assert process.returncode == 130, (until_end, errors)
    assert "go on with" in until_end
    for each in (guest, back):
        each.send_signal(signal.SIGKILL)
        each.communicate()

    step = rounds(out, "0")[-1]["step"]
    status = start("train", "--resume", out)
    until(lambda: rounds(out, "0")[-1]["step"] > step, status)
    assert len(rounds(out, "0")[-1]["ids"]) == 2
    status.send_signal(signal.SIGTERM)
    status.communicate(timeout=60)
    credited = json.loads((out / "workers" / "0" / "summary.json").read_text())["credited"]
    assert balanced(accounts(out / "workers", credited))
    assert sum(credited.values()) == rounds(out, "0")[-1]["tokens"]


@pytest.fixture
def waiting(corpus: Path, tmp_path: Path) -> Iterator[tuple[Host, list[str]]]:
    """The host of a run that nobody takes part in, and the words of a worker that fits."""
    flags = ["--budget=4ktok", f"--data.corpus={corpus}", *TINY, *ELASTIC, "--execution.device=cpu"]
    config = build(RunConfig, overrides([*flags, "--model.vocabulary=257"]))
    dataset = prepare(config.data, host_cache())
    with RunFolder.create(tmp_path / "run") as folder, Host(config, dataset, folder, ("127.0.0.1", 0)) as found:
        folder.write_config(config, dataset)
        yield (
            found,
            ["worker", "--lighthouse", found.address, str(folder.path / "config.toml"), "--out", str(tmp_path / "w")],
        )


def host_cache() -> Path:
    return Path(os.environ["SHOESTRING_CACHE"])


def refused(words: list[str], out: Path) -> str:
    status, _, errors = shoestring_here(*words)
    assert status == 2
    assert errors.count("\n") == 1
    assert not out.exists()
    return errors


def test_who_does_not_belong_to_the_run_is_refused_in_one_line(
    waiting: tuple[Host, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, words = waiting
    out = tmp_path / "w"
    monkeypatch.delenv("SHOESTRING_TOKEN", raising=False)
    assert "$SHOESTRING_TOKEN is empty" in refused(words, out)
    monkeypatch.setenv("SHOESTRING_TOKEN", "guessed")
    assert "its token is not the run's" in refused(words, out)
    monkeypatch.setenv("SHOESTRING_TOKEN", found.token)
    assert "trains by another recipe than the run" in refused([*words, "--sync.every=5"], out)
    assert "has another model than the run" in refused([*words, "--model.width=64"], out)
    assert "needs --transport distributed" in refused([*words, "--sync.overlap=1"], out)
    assert "only a run with --transport torchft can be joined" in refused([*words, "--transport=local"], out)
    with monkeypatch.context() as patch:
        patch.setattr(
            participant,
            "run_fingerprint",
            lambda config, data: RunFingerprint(workers=2, **vars_of(config, data), version="0.0.1"),
        )
        line = refused(words, out)
    assert f"the run is of shoestring {__version__}, this worker of 0.0.1" in line
    found.run_status.mark_finished("0")
    status, _, errors = shoestring_here(*words)
    assert (status, errors.count("\n")) == (2, 1)
    assert "the run has ended" in errors


def vars_of(config: RunConfig, data: Any) -> dict[str, str]:
    own = host.run_fingerprint(config, data)
    return {"recipe": own.recipe, "model": own.model, "data": own.data}


def test_a_folder_has_one_worker(
    waiting: tuple[Host, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, words = waiting
    monkeypatch.setenv("SHOESTRING_TOKEN", found.token)
    out = tmp_path / "w"
    out.mkdir()
    with RunFolder(out).held():
        status, _, errors = shoestring_here(*words)
    assert status == 2
    assert f"another process (process {os.getpid()}) is at work in {out}" in errors


def test_without_torchft_a_line_says_what_to_install(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["train", "--budget=4ktok", f"--data.corpus={corpus}", "--out", str(tmp_path / "w"), *TINY, *ELASTIC]
    assert "pip install shoestring[elastic]" in refused(words, tmp_path / "w")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--sync.fragments=2"], "sync.fragments = 2 needs --transport distributed"),
        (["--sync.overlap=2"], "sync.overlap = 2 needs --transport distributed"),
        (["--schedule=wsd_s"], "needs --transport distributed"),
        (["--sync=none"], "need a way to exchange"),
        (["--transport=local", "--restart"], "go with --transport torchft"),
        (["--listen=nowhere"], "is not HOST:PORT"),
        (["--listen=0.0.0.0:0"], "give the address by which other machines reach this one"),
    ],
)
def test_what_does_not_go_together_is_refused(corpus: Path, tmp_path: Path, flags: list[str], line: str) -> None:
    base = ["--budget=4ktok", f"--data.corpus={corpus}", *TINY, "--workers=2", "--transport=torchft", "--sync=muloco"]
    given = [flag for flag in base if flag.partition("=")[0] not in {each.partition("=")[0] for each in flags}]
    words = ["train", *given, "--train.batch=8", *flags, "--out", str(tmp_path / "w")]
    assert line in refused(words, tmp_path / "w")
