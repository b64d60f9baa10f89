"""A process that has imported what tests and commands import, and forks: `python -m tests.warm_server DESCRIPTOR ADDRESS [all]`.

A command that is forked is as real a process as one that is started, with words, environment, folder, output and exit status
of its own; but to import torch and the rest takes seconds each time. This process computes nothing and has one thread, so
that what is forked from it begins as a new process does, but for the seed of `hash`, which all of them share.

DESCRIPTOR: of a socket, with whose end this ends. ADDRESS: of a socket at which others may connect (`tests.warm_gate`, and
other processes of tests). `all`: import also what the tests themselves do, as the workers of pytest-xdist are forked from here.

Each message on a connection asks for one process: a JSON object with its `kind`, `words`, `environment` and `folder`; `numbers` of
descriptors, with those descriptors, and one more for this process to write a line with the process's number and, once it has
ended, a line with its exit status (negative: the signal that ended it). It may have `-c` or `-m`, as Python's; `cores`, which the
process may use; and `tied`: it is killed when the connection ends. Kinds:

- `command`: of `shoestring`.
- `worker`: of a run, in a session of its own.
- `server`: of multiprocessing, from which others are forked.
- `tests`: a worker of pytest-xdist.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import types
from dataclasses import dataclass
from typing import Any

from shoestring.budget import machine
from shoestring.cli import shrink, train, tune
from shoestring.cli.main import COMMANDS
from shoestring.method import methods
from tests import warm_workers
from tests.warm_start import fork_servers_too

ENGINES = ("model", "optim", "schedule", "objective", "data", "sync", "decode")
OTHERS = (
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "shoestring.compare.worker",
    "shoestring.experts.worker",
    "shoestring.sync.elastic.fault_tolerant",
    "shoestring.sync.elastic.loop",
    "shoestring.sync.pipeline.processes",
)
OF_TESTS = (
    "hypothesis",
    "openai",
    "pytest",
    "scipy.stats",
    "torch._dynamo",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
MESSAGE = 1 << 17
"""Bytes that a message may have."""
DESCRIPTORS = 64
"""That may come with one."""


def prepare(others: tuple[str, ...]) -> None:
    """Import everything that commands import, and `others`; start no thread."""
    for name in COMMANDS:
        importlib.import_module(f"shoestring.cli.{name}")
    for engine in ENGINES:
        methods(engine)
    for name in others:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
                raise
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        sys.exit(f"{len(threads)} threads after importing: a process forked now would lack all but one")
    gc.collect()
    gc.freeze()  # the pages stay shared: no collection writes to what was there before


@dataclass
class Child:
    """A process that was forked, the descriptor of its report, and the connection that asked for it."""

    process: int
    report: int
    asked: socket.socket
    tied: bool


class Server:
    """Forks for each message."""

    def __init__(self, first: socket.socket, address: str) -> None:
        self.first, self.children = first, dict[int, Child]()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(f"{address}.new")
        self.listener.listen(64)
        os.rename(f"{address}.new", address)  # whoever finds it can connect
        self.connections = {first}
        self.events = selectors.DefaultSelector()
        self.events.register(first, selectors.EVENT_READ)
        self.events.register(self.listener, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any]:
        """Returns in each process that is forked, with its message; ends this process with the first connection."""
        while True:
            for key, _ in self.events.select():
                if key.fileobj is self.listener:
                    connection, _ = self.listener.accept()
                    self.connections.add(connection)
                    self.events.register(connection, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    message = self._asked(key.fileobj)
                    if message is not None:
                        return message
                else:
                    self._ended(key.fd)

    def _asked(self, connection: socket.socket) -> dict[str, Any] | None:
        """The message, in a process that was forked for it."""
        try:
            text, descriptors, _, _ = socket.recv_fds(connection, MESSAGE, DESCRIPTORS)
        except ConnectionResetError:
            text, descriptors = b"", []
        if not text:
            for watched, child in self.children.items():
                if child.tied and connection in (child.asked, self.first):
                    signal.pidfd_send_signal(watched, signal.SIGKILL)
            if connection is self.first:
                os._exit(0)
            self.events.unregister(connection)
            self.connections.discard(connection)
            connection.close()
            return None
        message: dict[str, Any] = json.loads(text)
        *own, report = descriptors
        process = os.fork()
        if not process:
            self._become(dict(zip(message["numbers"], own, strict=True)), report)
            return message
        for descriptor in own:
            os.close(descriptor)
        _tell(report, process)
        watched = os.pidfd_open(process)
        self.children[watched] = Child(process, report, connection, bool(message.get("tied")))
        self.events.register(watched, selectors.EVENT_READ)
        return None

    def _ended(self, watched: int) -> None:
        self.events.unregister(watched)
        child = self.children.pop(watched)
        _, status = os.waitpid(child.process, 0)
        _tell(child.report, os.waitstatus_to_exitcode(status))
        os.close(child.report)
        os.close(watched)

    def _become(self, own: dict[int, int], report: int) -> None:
        """Take the descriptors of a new process, each under its number, and leave those of the server."""
        above = max(own) + 1
        kept = {number: fcntl.fcntl(held, fcntl.F_DUPFD_CLOEXEC, above) for number, held in own.items()}
        if 0 not in kept:
            nothing = os.open(os.devnull, os.O_RDONLY)
            kept[0] = fcntl.fcntl(nothing, fcntl.F_DUPFD_CLOEXEC, above)
            os.close(nothing)
        for held in {*own.values(), report, *self.children, *(child.report for child in self.children.values())}:
            os.close(held)
        self.events.close()
        for connection in (self.listener, *self.connections):
            connection.close()
        for number, held in kept.items():
            os.dup2(held, number)
            os.close(held)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _tell(report: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked has ended
        os.write(report, f"{number}\n".encode())


def quick() -> None:
    """As in tests/conftest.py: a look at the speed of this machine is a third of the time of a tiny run, and its page a half."""
    machine._too_low = lambda machine: False
    os.fsync = lambda fd: None  # likewise
    if "TESTS_PAGES" not in os.environ:
        for command in (shrink, train, tune):
            vars(command)["write_report"] = lambda runs: runs[0] / "report.html"


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever asked
    descriptor, address, *which = sys.argv[1:]
    prepare((*OTHERS, *OF_TESTS) if which else OTHERS)
    message = Server(socket.socket(fileno=int(descriptor)), address).serve()
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["folder"])
    if "cores" in message:
        os.sched_setaffinity(0, message["cores"])
    if message["kind"] == "worker":
        os.setsid()
    if message["kind"] != "tests":
        quick()
        if message["kind"] == "server":
            fork_servers_too()
        else:
            warm_workers.install()
    if "-c" in message:
        sys.path[0], sys.argv = "", ["-c", *message["words"]]
        sys.modules["__main__"] = own = types.ModuleType("__main__")
        exec(message["-c"], vars(own))
    else:
        module = message.get("-m", "shoestring")
        sys.path[0] = message["folder"]
        status = warm_workers.run(module, message["words"])
        # what Python does at its end, but to take apart all that was imported: a third of a second
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
