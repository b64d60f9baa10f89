"""The `shoestring` command as a real process, and a tiny run for it."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from shoestring.cli.main import main
from tests.warm_start import Forked, warm_server

TINY = (
    "--data.tokenizer=bytes --data.heldout=0.1 --model.layers=1 --model.width=32 --model.heads=2 --model.context=32 "
    "--train.batch=4 --train.heldout_tokens=256 --train.sample_tokens=8 --execution.compile=none "
    "--execution.precision=float32 --execution.loss=plain --execution.threads=1"
).split()


Command = subprocess.Popen[str] | Forked
"""A command at work."""

LIMIT = 120 * float(os.environ.get("TEST_PATIENCE", "1"))
"""Seconds that a command may take; tests/conftest.py says what TEST_PATIENCE is."""


def start(*words: object, **more: str) -> Command:
    """The command at work, forked from a process that has imported everything.

    It is started as by `start_fresh` where the environment asks for something that is read when a library is loaded, and where
    no process can be forked from another's.

    more: variables of the environment.
    """
    environment = {**os.environ, **more}
    if sys.platform == "linux" and warm_server().can(environment):
        return Forked([str(word) for word in words], environment)
    return start_fresh(*words, **more)


def start_fresh(*words: object, **more: str) -> subprocess.Popen[str]:
    """The command at work, started as a user starts it, which takes seconds."""
    command = [sys.executable, "-m", "shoestring", *map(str, words)]
    return subprocess.Popen(
        command, text=True, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(process: Command) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command, once it has ended."""
    output, errors = process.communicate(timeout=LIMIT)
    assert process.returncode is not None
    return process.returncode, output, errors


def shoestring(*words: object, **more: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error). As `start`."""
    return finished(start(*words, **more))


def newest_weights(run: Path) -> bytes:
    """The files of weights of a run's newest checkpoint, of however many processes."""
    known = (path for path in (run / "checkpoints").iterdir() if re.fullmatch(r"step-\d{8,18}", path.name))
    return b"".join(path.read_bytes() for path in sorted(max(known).glob("model*.safetensors")))


def shoestring_here(*words: object) -> tuple[int, str, str]:
    """As `shoestring`, in this process: for what needs no process of its own, and no second import of torch."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main([str(word) for word in words])
    return status, output.getvalue(), errors.getvalue()
