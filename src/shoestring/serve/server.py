"""The server as a process: it listens, and on SIGTERM takes nothing new, answers what it has, and ends."""

import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.serve.app import Service, make_app
from shoestring.serve.connections import Connection

CONNECTIONS = 1000
"""Open at a time; more are told to come back."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. port: 0 takes one that is free. Raises: UsageError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        raise UsageError(f"it cannot listen at {host}, port {port}: {error.strerror}") from None
    return made


class DrainingServer(uvicorn.Server):
    """uvicorn, which on a signal goes on until what it is answering is answered; on a second one it stops at once.

    seconds: that this may take.
    ready: called once it listens.
    """

    def __init__(self, config: uvicorn.Config, service: Service, seconds: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._seconds, self._ready = service, seconds, ready
        self._until = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True
        self._until = time.monotonic() + self._seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        if self._service.draining and (not self._service.active or time.monotonic() >= self._until):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(service: Service, listening: socket.socket, drain: float, ready: Callable[[], None]) -> None:
    """Answer at this socket until a signal comes.

    drain: seconds that may then go by until what is being answered is broken off.
    ready: called once requests are taken.
    Raises: ShoestringError where an engine cannot be made.
    """
    config = uvicorn.Config(
        make_app(service),
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # what goes wrong in an answer is logged where it is caught
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = DrainingServer(config, service, drain, ready)
    try:
        server.run(sockets=[listening])
    except SystemExit:  # it did not start
        if service.failure is None:
            raise
        raise ShoestringError(f"no engine can be made: {first_line(service.failure)}") from service.failure
