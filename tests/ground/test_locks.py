"""A lock is one process's, ends with it however it ends, and is no forked child's."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.errors import ShoestringError
from shoestring.locks import Held, hold
from shoestring.log_lines import KeptLines, attached

HOLD = """
import os, sys, time
from pathlib import Path
from shoestring.locks import hold
with hold(Path(sys.argv[1])):
    if sys.argv[2] == "fork":
        ready, say = os.pipe()
        if os.fork() == 0:
            os.write(say, b"1")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def holder(path: Path, how: str = "plain") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path, how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"{process.pid}\n"
    return process


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_a_lock_does_not_outlive_a_killed_process(tmp_path: Path, how: str) -> None:
    path = tmp_path / "lock"
    process = holder(path, how)
    try:
        with pytest.raises(Held) as caught, hold(path):
            pass
        assert caught.value.holder == str(process.pid)
        process.kill()
        process.wait()
        with hold(path):
            assert path.read_text() == f"{os.getpid()}\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the forked child
        process.communicate()


def test_it_is_waited_for_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = holder(path)

    class Killing(KeptLines):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            process.kill()

    with attached(Killing()) as said, hold(path, wait="waiting for it"):
        assert said.lines == ["waiting for it"]
    process.communicate()


def test_a_lock_that_its_holder_removed_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path):
        path.unlink()
        with hold(path), pytest.raises(Held), hold(path):
            pass


def test_no_lock_goes_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ShoestringError, match="symbolic link"), hold(tmp_path / "lock"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"
