"""Processes forked from a warm one (`tests.warm_server`): commands, which take the place of `subprocess.Popen`, and others."""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
GATE = Path(__file__).with_name("warm_gate.py")

READ_WHEN_LOADED = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH_", "PYTHON", "LD_", "MALLOC_", "CUDA_", "MPL")
"""How the names of variables begin that a library or Python reads when it is loaded, which is too late in a fork."""

QUIET = {"TORCH_CPP_LOG_LEVEL"}
"""One of those changes only what torch logs; `shoestring worker` sets it, in the tests' own process as well."""


def for_loading(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name.startswith(READ_WHEN_LOADED) and name not in QUIET
    }


ADDRESS = "TESTS_WARM_SERVER"
"""The variable with the address of a warm process that others started, and what it has read: `ADDRESS VARIABLES`, as JSON."""


class WarmServer:
    """The process to fork from: one for all workers of pytest-xdist, which are forked from it too; otherwise one from the
    first command on.

    everything: import what the tests do, too.
    """

    def __init__(self, everything: bool = False) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if ADDRESS in os.environ:
            self.address, self._loaded = json.loads(os.environ[ADDRESS])
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.connect(self.address)
            return
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self.address, self._loaded = f"{self._folder.name}/socket", for_loading(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [str(theirs.fileno()), self.address, *(["all"] if everything else [])]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_server", *words],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        os.environ[ADDRESS] = json.dumps([self.address, self._loaded])

    def can(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment may be forked: libraries have read theirs."""
        return for_loading(environment) == self._loaded

    def ask(self, message: Mapping[str, object], descriptors: Sequence[int]) -> None:
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], list(descriptors))
        except OSError as error:
            status = self._process.poll() if self._process else "?"
            raise RuntimeError(f"the warm process has ended with status {status}") from error

    def gate(self, kind: str) -> list[str]:
        """What stands in place of Python in a command: a process that stands for one that is forked, of a kind.

        Raises: RuntimeError where the warm process has ended.
        """
        # it listens once it has imported everything
        while not os.path.exists(self.address):
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"the warm process has ended with status {self._process.returncode}")
            time.sleep(0.01)
        return [sys.executable, "-I", "-S", str(GATE), self.address, kind]

    def close(self) -> None:
        self._socket.close()
        if self._process is not None:
            os.environ.pop(ADDRESS, None)
            self._process.wait(10)
            self._folder.cleanup()


@functools.cache
def warm_server(everything: bool = False) -> WarmServer:
    server = WarmServer(everything)
    atexit.register(server.close)
    return server


def fork_servers_too() -> None:
    """From now on the servers that multiprocessing forks from are forked themselves."""

    def start(path: bytes, words: Sequence[str], descriptors: Sequence[int]) -> int:
        found = warm_server()
        if found.can(os.environ):
            path, words = os.fsencode(sys.executable), [*found.gate("server"), *words[1:]]
        return util.spawnv_passfds(path, words, descriptors)

    vars(forkserver)["util"] = types.SimpleNamespace(**{**vars(util), "spawnv_passfds": start})


def gated(command: Sequence[str], *, env: Mapping[str, str], **more: Any) -> "subprocess.Popen[bytes]":
    """A worker that `shoestring.launch.processes.tied` describes, forked from the warm process where it can be."""
    if command[1:4] == ["-I", "-S", "-c"] and command[7:9] == [sys.executable, "-m"] and warm_server().can(env):
        command = [*command[:7], *warm_server().gate("worker"), *command[8:]]
    return subprocess.Popen(command, env=env, **more)


class Forked:
    """A `shoestring` command with words and an environment, in a process of its own. As `subprocess.Popen`, in what tests use."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.args = ["shoestring", *words]
        self.returncode: int | None = None
        out, errors, report = os.pipe(), os.pipe(), os.pipe()
        theirs = [out[1], errors[1], report[1]]
        try:
            message = {
                "kind": "command",
                "words": list(words),
                "environment": dict(environment),
                "folder": os.getcwd(),
                "numbers": [1, 2],
            }
            warm_server().ask(message, theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.stdout: IO[str] = os.fdopen(out[0])
        self.stderr: IO[str] = os.fdopen(errors[0])
        self._report = report[0]
        self.pid = int(self._line())
        self._handle = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(the rest of its output, of its errors). Raises: subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        texts = ["", ""]

        def read(place: int, stream: IO[str]) -> None:
            texts[place] = "" if stream.closed else stream.read()  # all was read by an earlier call

        streams = (self.stdout, self.stderr)
        readers = [threading.Thread(target=read, args=each, daemon=True) for each in enumerate(streams)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(end - time.monotonic(), 0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if end is None else max(end - time.monotonic(), 0))
        for stream in streams:
            stream.close()
        return texts[0], texts[1]

    def _line(self) -> bytes:
        """The next line of the report. Raises: RuntimeError where the server ended before it wrote one."""
        line = b""
        while not line.endswith(b"\n"):
            read = os.read(self._report, 1)
            if not read:
                raise RuntimeError("the warm process has ended")
            line += read
        return line

    def _ended(self, timeout: float | None) -> int | None:
        """The exit status, or None where the process has not ended within so many seconds."""
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            self.returncode = int(self._line())
            os.close(self._report)
            os.close(self._handle)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
