"""The door before a run's lighthouse: who has not the run's token does not come in, who trains something else neither.

Connections open as `handshake` has it and go on as the bytes of the service that was asked for. Those bytes are neither
hidden nor sealed by the door: it keeps strangers out, it is no protection from someone who can alter the traffic on its
way (payloads and weights carry seals of their own). Whoever can reach the loopback of a machine that takes part is trusted.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from shoestring.errors import ShoestringError, UsageError
from shoestring.sync.frame import derive_key
from shoestring.sync.handshake import Passport, Refused, admit, enter

CHUNK = 1 << 16
log = logging.getLogger(__name__)
T = TypeVar("T")


class RefusalLog:
    """Logs why connections were refused: the first few in a minute by a line each, the others by their number alone.

    Anybody who reaches the address can be refused as often as he likes; the log must not grow with it.

    lines: at most so many lines in a window; what came beyond them is one more line, once the window has passed.
    window: seconds.
    """

    def __init__(self, *, lines: int = 5, window: float = 60.0) -> None:
        self._lines, self._window = lines, window
        self._lock = threading.Lock()
        self._began, self._told, self._untold, self._last = -window, 0, 0, ""

    def add(self, reason: str, now: float) -> None:
        """Log a refusal, or count it. now: the monotonic clock, seconds."""
        with self._lock:
            if now - self._began >= self._window:
                self._tell_untold()
                self._began, self._told = now, 0
            if self._told < self._lines:
                self._told += 1
                log.warning("a worker was refused: %s", reason)
            else:
                self._untold, self._last = self._untold + 1, reason

    def close(self) -> None:
        """Log how many were not told of yet."""
        with self._lock:
            self._tell_untold()

    def _tell_untold(self) -> None:
        if self._untold:
            log.warning("%d more workers were refused since, the last because %s", self._untold, self._last)
        self._untold = 0


class Listener(Generic[T]):
    """Accepts connections in a thread: `greet` each (at most `strangers` at a time, more are turned away), then `serve`.

    Either may raise OSError or ShoestringError, which ends that connection alone.
    """

    def __init__(
        self,
        address: tuple[str, int],
        greet: Callable[[socket.socket], T],
        serve: Callable[[socket.socket, T], None],
        *,
        strangers: int,
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._socket = socket.create_server(address, family=family, backlog=128)
        except OSError as error:
            raise UsageError(f"cannot listen at {address[0]}:{address[1]}: {error}") from None
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._greet, self._serve = greet, serve
        self._places = threading.BoundedSemaphore(strangers)
        self._links: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._open = True
        self._refusals = RefusalLog()
        threading.Thread(target=self._accept, name="shoestring-listener", daemon=True).start()

    def _accept(self) -> None:
        while self._open:
            try:
                link, _ = self._socket.accept()
            except OSError:
                # out of descriptors, or the other side was gone already: neither is a reason to stop listening
                time.sleep(0.05 if self._open else 0)
                continue
            if not self._places.acquire(blocking=False):
                link.close()
                continue
            threading.Thread(target=self._attend, args=(link,), name="shoestring-link", daemon=True).start()

    def _attend(self, link: socket.socket) -> None:
        with self._lock:
            self._links.add(link)
        try:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                greeted = self._greet(link)
            finally:
                self._places.release()
            self._serve(link, greeted)
        except Refused as error:
            self._refusals.add(str(error), time.monotonic())
        except (OSError, ShoestringError) as error:
            log.info("a connection ended: %s", error)
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def close(self) -> None:
        """Stop listening and hang up on everyone."""
        self._open = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._refusals.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def join(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until either side hangs up."""
    for link in (one, other):
        link.settimeout(None)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=_copy, args=(other, one), name="shoestring-back", daemon=True)
    back.start()
    _copy(one, other)
    back.join()
    other.close()


class Door:
    """Stands before services that know no strangers; a context manager.

    services: by name, the loopback addresses to forward to (`Lighthouse.services`). patience: seconds that a stranger has to
    show a proof. strangers: how many may be at it at one time. Raises: UsageError where it cannot listen at `address`.
    """

    def __init__(
        self,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        token: str,
        passport: Passport,
        services: Mapping[str, tuple[str, int]],
        patience: float = 5.0,
        strangers: int = 32,
    ) -> None:
        self._services = dict(services)
        if not token:
            raise UsageError("a door needs a token: without one it keeps nobody out")
        key = derive_key(token)
        self._listener = Listener(
            address,
            lambda link: admit(link, key, passport, patience=patience),
            self._forward,
            strangers=strangers,
        )
        self.address = self._listener.address

    def _forward(self, link: socket.socket, admitted: tuple[dict[str, Any], bytes]) -> None:
        service = admitted[0].get("service")
        if service in self._services:
            join(link, socket.create_connection(self._services[service], timeout=5))

    def close(self) -> None:
        """Let nobody in any more and hang up on those inside."""
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Entry:
    """A worker's way in: loopback addresses of the run's services, each connection to which goes through the door.

    patience: seconds that a connection to the door may take. Raises: Refused, with the door's reason; ShoestringError where
    no door answers.
    """

    def __init__(self, host: str, port: int, token: str, passport: Passport, *, patience: float = 10.0) -> None:
        self._door, self._key, self._passport, self._patience = (host, port), derive_key(token), passport, patience
        self._enter("nothing").close()
        self._listeners = {name: self._open(name) for name in ("lighthouse", "store")}

    def _enter(self, service: str) -> socket.socket:
        return enter(self._door, self._key, self._passport, {"service": service}, patience=self._patience)[0]

    def _open(self, service: str) -> Listener[socket.socket]:
        return Listener(("127.0.0.1", 0), lambda link: self._enter(service), join, strangers=64)

    @property
    def lighthouse(self) -> tuple[str, int]:
        """The lighthouse as this machine sees it."""
        return self._listeners["lighthouse"].address

    @property
    def store(self) -> tuple[str, int]:
        """The store as this machine sees it."""
        return self._listeners["store"].address

    def close(self) -> None:
        """Give up the connections made through it."""
        for listener in self._listeners.values():
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
