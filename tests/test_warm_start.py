"""Commands that are forked from a warm process are processes like others."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.train.command import TINY, shoestring, shoestring_here, start
from tests.warm_start import Forked, warm_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")


@pytest.mark.parametrize("words", [["frob"], ["methods", "--json"], ["generate", "nowhere", "a"]])
def test_output_errors_and_status_are_those_of_the_command(words: list[str]) -> None:
    process = start(*words)
    assert isinstance(process, Forked)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == shoestring_here(*words)


@pytest.mark.usefixtures("pages")
def test_folder_and_environment_are_those_of_the_moment(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--budget=1ktok", f"--data.corpus={corpus}", "--out=run", *TINY]
    status, _, errors = shoestring(*words, SHOESTRING_CACHE=str(tmp_path / "cache"))
    assert status == 0, errors
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "cache").is_dir()


def test_a_signal_ends_one_and_the_next_begins_alone(corpus: Path, tmp_path: Path) -> None:
    processes = [
        start("train", "--budget=100Mtok", f"--data.corpus={corpus}", "--out", tmp_path / name, *TINY) for name in "ab"
    ]
    assert len({os.getpid(), *(process.pid for process in processes)}) == 3
    for process, number in zip(processes, (signal.SIGKILL, signal.SIGTERM), strict=True):
        assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in (-number, 128 + number)  # asked before it listens, or after
        assert process.poll() == process.returncode
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_what_libraries_read_when_they_are_loaded_is_not_changed_afterwards() -> None:
    assert warm_server().can({**os.environ, "SHOESTRING_CACHE": "elsewhere"})
    assert not warm_server().can({**os.environ, "OMP_NUM_THREADS": "7"})
