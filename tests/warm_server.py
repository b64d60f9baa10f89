"""A process that has imported what a command imports, and forks into commands: `python -m tests.warm_server DESCRIPTOR`.

A command that is forked is as real a process as one that is started, with words, environment, folder, output and exit status
of its own; but to import torch and the rest takes seconds each time. This process computes nothing and has one thread, so
that what is forked from it begins as a new process does, but for the seed of `hash`, which all of them share.

DESCRIPTOR: of a socket. Each message on it asks for one command: a JSON object with `words`, `environment` and `folder`, and
three descriptors: for its output, for its errors, and for this process to write a line with the command's number and,
once it has ended, a line with its exit status (negative: the signal that ended it). With the socket's end this ends.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from typing import Any

from shoestring.budget import machine
from shoestring.cli.main import COMMANDS
from shoestring.method import methods
from tests import warm_workers

ENGINES = ("model", "optim", "schedule", "objective", "data", "sync", "decode")
OTHERS = (
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "shoestring.compare.worker",
    "shoestring.experts.worker",
)
MESSAGE = 1 << 17
"""Bytes that a message may have."""


def prepare() -> None:
    """Import everything that commands import, and start no thread."""
    # as in tests/conftest.py: a look at the speed of this machine is a third of the time of a tiny run
    machine._too_low = lambda machine: False
    os.fsync = lambda fd: None  # likewise
    for name in COMMANDS:
        importlib.import_module(f"shoestring.cli.{name}")
    for engine in ENGINES:
        methods(engine)
    for name in OTHERS:
        importlib.import_module(name)
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        sys.exit(f"{len(threads)} threads after importing: a process forked now would lack all but one")
    warm_workers.install()
    gc.collect()
    gc.freeze()  # the pages stay shared: no collection writes to what was there before


def serve(asked: socket.socket) -> dict[str, Any]:
    """Fork for each message. Returns in each command's process, with the message; ends this process with the socket."""
    events, reports = selectors.DefaultSelector(), dict[int, tuple[int, int]]()
    events.register(asked, selectors.EVENT_READ)
    while True:
        for key, _ in events.select():
            if key.fileobj is asked:
                text, descriptors, _, _ = socket.recv_fds(asked, MESSAGE, 3)
                if not text:
                    os._exit(0)
                output, errors, report = descriptors
                process = os.fork()
                if not process:
                    _become(output, errors, [asked.detach(), report, *reports, *(each for _, each in reports.values())])
                    message: dict[str, Any] = json.loads(text)
                    return message
                os.close(output)
                os.close(errors)
                os.write(report, f"{process}\n".encode())
                watched = os.pidfd_open(process)
                reports[watched] = process, report
                events.register(watched, selectors.EVENT_READ)
            else:
                events.unregister(key.fd)
                process, report = reports.pop(key.fd)
                _, status = os.waitpid(process, 0)
                os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
                os.close(report)
                os.close(key.fd)


def _become(output: int, errors: int, others: list[int]) -> None:
    """Take the descriptors of a new process, and leave those of the server."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(old, new)
    for descriptor in (nothing, output, errors, *others):
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever asked
    prepare()
    message = serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["folder"])
    sys.path[0] = message["folder"]
    sys.argv = ["shoestring", *message["words"]]
    runpy.run_module("shoestring", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
