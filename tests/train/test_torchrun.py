"""`shoestring train` by processes that were started for it, as torchrun starts them: what each takes from its environment, and
what sets it apart from the others."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from shoestring.config import build, overrides, read_toml, to_toml
from shoestring.errors import ShoestringError, UsageError
from shoestring.launch import crew
from shoestring.sync.rendezvous import admission
from shoestring.sync.rendezvous.admission import RunFingerprint, admit
from shoestring.sync.transport.frame import TOKEN
from shoestring.train.config import RunConfig
from tests.train.command import TINY, newest_weights, shoestring_here

MULOCO = "--sync=muloco --sync.every=4 --sync.codec=2bit --train.batch=12".split()


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process in the place of worker 1 of two, without a token."""
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", TOKEN: "", "GLOO_SOCKET_IFNAME": "lo", **store}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(crew, "PATIENCE", 0.2)
    return monkeypatch


@pytest.fixture
def shown(place: pytest.MonkeyPatch) -> list[RunFingerprint]:
    """The fingerprints that this worker shows; it then turns back."""
    found: list[RunFingerprint] = []

    def join(timeout: float, *, fingerprint: RunFingerprint, heartbeat_timeout: float, island: int | None) -> None:
        found.append(fingerprint)
        raise UsageError("turned back")

    place.setattr(crew, "join", join)
    return found


def refused(*words: object) -> str:
    status, _, errors = shoestring_here("train", *words)
    assert status == 2
    assert errors.count("\n") == 1
    return errors


def new(corpus: Path, out: Path, *flags: str) -> list[object]:
    return ["--budget=4ktok", f"--data.corpus={corpus}", "--out", out, *TINY, *MULOCO, *flags]


def test_the_workers_that_were_started_are_those_of_the_run(
    corpus: Path, tmp_path: Path, shown: list[RunFingerprint]
) -> None:
    refused(*new(corpus, tmp_path / "run"))
    refused(*new(corpus, tmp_path / "run", "--workers=3"))
    assert [fingerprint.workers for fingerprint in shown] == [2, 3]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "line"),
    [
        ({}, ["--workers=3"], "the run is of 3 workers, and 2 were started"),
        ({"WORLD_SIZE": "two"}, [], "WORLD_SIZE is 'two' in the environment: a whole number is needed"),
        ({}, ["--heartbeat-timeout=0"], "argument --heartbeat-timeout: '0' is not a number of seconds above 0"),
        ({}, ["--heartbeat-timeout=x"], "argument --heartbeat-timeout: 'x' is not a number of seconds above 0"),
        ({}, ["--transport=torchft"], "transport = torchft: such a run is started by one command, not by torchrun"),
        ({}, ["--transport=local"], "transport = local: such a run is started by one command, not by torchrun"),
        (
            {"MASTER_ADDR": "192.0.2.7"},
            [],
            "SHOESTRING_TOKEN is empty, and other machines can reach the store of the workers",
        ),
        ({"MASTER_ADDR": "node-0.example"}, [], "SHOESTRING_TOKEN is empty"),
        ({"GLOO_SOCKET_IFNAME": "eth0"}, [], "SHOESTRING_TOKEN is empty"),
        ({"MASTER_ADDR": "192.0.2.7", TOKEN: " \n"}, [], "SHOESTRING_TOKEN is empty"),
    ],
)
def test_a_worker_that_has_no_place_in_the_run_is_refused_in_one_line(
    corpus: Path, tmp_path: Path, place: pytest.MonkeyPatch, changes: dict[str, str], flags: list[str], line: str
) -> None:
    for name, value in changes.items():
        place.setenv(name, value)
    assert line in refused(*new(corpus, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_on_the_loopback_no_token_is_needed(
    corpus: Path, tmp_path: Path, place: pytest.MonkeyPatch, address: str
) -> None:
    place.setenv("MASTER_ADDR", address)
    status, _, errors = shoestring_here("train", *new(corpus, tmp_path / "run"))
    assert (status, errors) == (1, f"shoestring: worker 0 does not answer at {address}:1 within 0.2 s\n")


def begun(path: Path, corpus: Path, *flags: str) -> Path:
    """A run of two workers, as far as its configuration."""
    words = [*TINY, *MULOCO, "--budget=4ktok", "--workers=2", "--model.vocabulary=257", f"--data.corpus={corpus}"]
    path.mkdir(exist_ok=True)
    (path / "config.toml").write_text(to_toml(build(RunConfig, overrides([*words, *flags]))))
    return path


@pytest.mark.parametrize("transport", ["local", "torchft"])
def test_a_run_by_another_transport_is_not_resumed(corpus: Path, tmp_path: Path, transport: str) -> None:
    run = begun(tmp_path / "run", corpus, f"--transport={transport}")
    assert f"transport = {transport}: such a run is started by one command" in refused("--resume", run)
    assert [path.name for path in run.iterdir()] == ["config.toml"]


def admit_all(fingerprints: list[RunFingerprint]) -> list[str]:
    """What each worker is told; '' where it is admitted."""
    store, lines = dist.HashStore(), [""] * len(fingerprints)

    def worker(rank: int) -> None:
        try:
            admit(fingerprints[rank], store, rank=rank, key=b"", timeout=5)
        except ShoestringError as error:
            lines[rank] = str(error)

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(len(fingerprints))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return lines


@pytest.mark.parametrize(
    ("flags", "words", "line"),
    [
        ([], [], ""),
        (["--data.corpus=elsewhere"], [], ""),
        (["--sync.every=5"], [], "worker 1 trains by another recipe than worker 0"),
        (["--model.width=64"], [], "worker 1 has another model than worker 0"),
        (["--data.packing=isolated"], [], "worker 1 reads another corpus or tokenizer than worker 0"),
        ([], ["--from-step", 8], "worker 1 starts from the checkpoint of step 8, worker 0 from the newest checkpoint"),
        (None, [], "worker 1 starts anew, worker 0 from the newest checkpoint"),
    ],
)
def test_who_goes_on_with_another_run_is_refused(
    corpus: Path,
    tmp_path: Path,
    shown: list[RunFingerprint],
    place: pytest.MonkeyPatch,
    flags: list[str] | None,
    words: list[object],
    line: str,
) -> None:
    place.setattr(admission, "LINGER", 0.1)
    place.chdir(tmp_path)
    Path("elsewhere").symlink_to(corpus)
    refused("--resume", begun(tmp_path / "one", corpus))
    if flags is None:
        refused(*new(corpus, tmp_path / "new"))
    else:
        other = "one" if line else "another"  # what differs is found at one path, and no other path makes a difference
        refused("--resume", begun(tmp_path / other, corpus, *flags), *words)
    for told in admit_all(shown):
        assert told.startswith(line) if line else told == "", told


def test_who_goes_on_with_another_text_is_refused(corpus: Path, tmp_path: Path, place: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def joined(*asked: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(rank=1)

    place.setattr(crew, "joined", joined)
    place.setattr(crew, "all_gather", lambda transport, content, number: ["0123456789", content])
    line = "worker 1 reads another corpus or tokenizer than worker 0 (fingerprints "
    assert line in (told := refused("--resume", begun(tmp_path / "run", corpus)))
    assert told.endswith(" and 01234567)\n")


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield held.getsockname()[1]


@pytest.mark.slow
def test_torchrun_trains_and_goes_on(corpus: Path, tmp_path: Path, place: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", TOKEN):
        place.delenv(name)

    def torchrun(*words: object) -> str:
        with free_port() as port:
            pass
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
        command += ["-m", "shoestring", "train", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, check=True, timeout=120, env=environment, stdout=-1, text=True).stdout

    run, resumed = tmp_path / "run", tmp_path / "resumed"
    shown = torchrun(*new(corpus, run, "--train.keep=100", "--train.checkpoint_every=0.0001"))
    claims = [line for line in shown.splitlines() if line.endswith(" parameters")]
    assert len(set(claims)) == len(claims) > 0, shown  # worker 0 alone is heard
    assert shown.count("held-out loss") == 1
    assert read_toml(run / "config.toml")["workers"] == 2
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["stopped"], summary["workers"], summary["processes"]) == ("finished", 2, 2)
    assert newest_weights(run / "workers" / "1")
    shutil.copytree(run, resumed)
    steps = sorted((resumed / "checkpoints").iterdir())
    middle = int(steps[len(steps) // 2].name.removeprefix("step-"))
    torchrun("--resume", resumed, "--from-step", middle)
    assert newest_weights(resumed) == newest_weights(run)
