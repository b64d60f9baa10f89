"""A process that was started by another ends with it, however that one ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import multiprocessing, os, sys, time
from pathlib import Path

def child(path):
    from shoestring.train.stopping import StopRequest, stop_with_parent
    stop_with_parent()
    with StopRequest() as stop:
        Path(path).write_text(str(os.getpid()))
        while stop.asked is None:
            time.sleep(0.02)
    Path(path).write_text(f"asked by {stop.asked}")

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=child, args=(sys.argv[1],))
    process.start()
    process.join()
"""


def wait_for(path: Path, wanted: str, seconds: float = 60.0) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = path.read_text() if path.exists() else ""
        if found.startswith(wanted) and found:
            return found
        time.sleep(0.05)
    pytest.fail(f"{path.name} says {found!r}, not {wanted!r}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_stops_when_what_started_it_is_gone(tmp_path: Path, number: signal.Signals) -> None:
    script, said = tmp_path / "parent.py", tmp_path / "said.txt"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(said)])
    started = int(wait_for(said, ""))
    os.kill(started, 0)
    parent.send_signal(number)
    parent.wait(10)
    assert wait_for(said, "asked by") == f"asked by {signal.SIGTERM.value}"
