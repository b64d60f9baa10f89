"""How workers on other machines come to a run whose workers come and go."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from shoestring.config import build, overrides
from shoestring.data.prepare import prepare
from shoestring.launch.host import Host
from shoestring.sync.transport.frame import TOKEN
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import RunFolder
from tests.train.command import TINY, shoestring, start

ELASTIC = "--workers=2 --transport=torchft --sync=muloco --sync.every=4 --train.batch=8 --execution.device=cpu".split()


@pytest.fixture
def outward() -> str:
    """An address by which other machines may reach this one."""
    up = psutil.net_if_stats()
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET and up[name].isup and not entry.address.startswith("127."):
                return entry.address
    pytest.skip("this machine has no address but the loopback's")


@pytest.fixture
def host(corpus: Path, tmp_path: Path) -> Iterator[Callable[[str], Host]]:
    """Makes the host of a run that nobody takes part in yet, at an address."""
    flags = ["--budget=4ktok", f"--data.corpus={corpus}", *TINY, *ELASTIC, "--model.vocabulary=257"]
    config = build(RunConfig, overrides(flags))
    dataset = prepare(config.data, Path(os.environ["SHOESTRING_CACHE"]))
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.create(tmp_path / "run"))
        folder.write_config(config, dataset)
        yield lambda address: stack.enter_context(Host(config, dataset, folder, (address, 0)))


def test_a_run_on_the_loopback_says_what_other_machines_need(host: Callable[[str], Host], tmp_path: Path) -> None:
    found = host("127.0.0.1")
    assert found.directions == [
        f"workers may join at {found.address}; the run's token is in {tmp_path / 'run' / 'token'}",
        "from this machine alone; for other machines: --listen HOST:PORT",
    ]


def test_a_run_that_listens_elsewhere_says_how_to_come(
    host: Callable[[str], Host], outward: str, tmp_path: Path
) -> None:
    found = host(outward)
    command = f"shoestring worker --lighthouse {found.address} {tmp_path / 'run' / 'config.toml'}"
    assert found.address.startswith(f"{outward}:")
    assert found.directions[1:] == [f"from elsewhere: {TOKEN}=... {command}"]


def test_a_worker_comes_by_an_address_that_other_machines_reach(
    host: Callable[[str], Host], outward: str, tmp_path: Path
) -> None:
    found = host(outward)
    words = ["worker", "--lighthouse", found.address, tmp_path / "run" / "config.toml", "--out", tmp_path / "guest"]
    status, shown, errors = shoestring(*words, "--name=guest", **{TOKEN: found.token})
    assert status == 0, errors
    assert "guest: 4,096 tokens trained into the run, 0 lost" in shown
    assert found.run_status.finished_by() == "guest"


@pytest.mark.slow
def test_a_run_that_listens_elsewhere_runs_to_its_end(corpus: Path, outward: str, tmp_path: Path) -> None:
    words = ["--budget=4ktok", f"--data.corpus={corpus}", "--out", tmp_path / "run", *TINY, *ELASTIC]
    process = start("train", *words, f"--listen={outward}:0")
    shown, errors = process.communicate(timeout=100)
    assert process.returncode == 0, (shown, errors)
    assert f"shoestring worker --lighthouse {outward}:" in shown.replace("\n", " ")
    assert "held-out loss" in shown
