"""The listener before a run's lighthouse: it accepts workers that have the run's token and train the same thing.

Connections begin with the handshake (`handshake`) and go on as the bytes of the service that was requested. The listener
neither encrypts nor seals those bytes. It keeps out who has not the token; it is no protection from someone who can alter the
traffic on its way (payloads and weights have seals of their own). Whoever reaches the loopback of a machine that takes part
is trusted.
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
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.handshake import Refused, accept_worker, connect_to_host
from shoestring.sync.transport.frame import derive_key

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
                self._log_untold()
                self._began, self._told = now, 0
            if self._told < self._lines:
                self._told += 1
                log.warning("a worker was refused: %s", reason)
            else:
                self._untold, self._last = self._untold + 1, reason

    def close(self) -> None:
        """Log how many have no line yet."""
        with self._lock:
            self._log_untold()

    def _log_untold(self) -> None:
        if self._untold:
            log.warning("%d more workers were refused since, the last because %s", self._untold, self._last)
        self._untold = 0


class Listener(Generic[T]):
    """Accepts connections in a thread, and handles each in a thread of its own: first `handshake`, then `serve`.

    Either may raise OSError or ShoestringError, which ends that connection alone.

    address: host and port to listen at, port 0 for any that is free.
    handshake: given the connection; what it returns is given to `serve`.
    serve: given the connection and that.
    max_handshakes: how many connections may be in their handshake at one time; more are closed at once.

    Raises: UsageError where it cannot listen there.
    """

    def __init__(
        self,
        address: tuple[str, int],
        handshake: Callable[[socket.socket], T],
        serve: Callable[[socket.socket, T], None],
        *,
        max_handshakes: int,
    ) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._socket = socket.create_server(address, family=family, backlog=128)
        except OSError as error:
            raise UsageError(f"cannot listen at {address[0]}:{address[1]}: {error}") from None
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._handshake, self._serve = handshake, serve
        self._places = threading.BoundedSemaphore(max_handshakes)
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
            threading.Thread(target=self._handle, args=(link,), name="shoestring-link", daemon=True).start()

    def _handle(self, link: socket.socket) -> None:
        with self._lock:
            self._links.add(link)
        try:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            try:
                accepted = self._handshake(link)
            finally:
                self._places.release()
            self._serve(link, accepted)
        except Refused as error:
            self._refusals.add(str(error), time.monotonic())
        except (OSError, ShoestringError) as error:
            log.debug("a connection ended: %s", error)
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def close(self) -> None:
        """Stop listening and close every connection."""
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


def relay(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until either side closes its connection."""
    for link in (one, other):
        link.settimeout(None)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=_copy, args=(other, one), name="shoestring-back", daemon=True)
    back.start()
    _copy(one, other)
    back.join()
    other.close()


class RunListener:
    """Accepts the workers of a run and forwards each connection to the service that it requests; a context manager.

    address: host and port to listen at, port 0 for any that is free.
    token: the run's.
    fingerprint: of the run; a worker that differs is refused.
    services: by name, the loopback addresses to forward to (`Lighthouse.services`).
    timeout: seconds that a connection's handshake may take.
    max_handshakes: how many connections may be in their handshake at one time.

    Raises: UsageError without a token, or where it cannot listen at `address`.
    """

    def __init__(
        self,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        token: str,
        fingerprint: RunFingerprint,
        services: Mapping[str, tuple[str, int]],
        timeout: float = 5.0,
        max_handshakes: int = 32,
    ) -> None:
        self._services = dict(services)
        if not token:
            raise UsageError("a run's listener needs a token: without one it keeps nobody out")
        key = derive_key(token)
        self._listener = Listener(
            address,
            lambda link: accept_worker(link, key, fingerprint, timeout=timeout),
            self._forward,
            max_handshakes=max_handshakes,
        )
        self.address = self._listener.address

    def _forward(self, link: socket.socket, accepted: tuple[dict[str, Any], bytes]) -> None:
        service = accepted[0].get("service")
        if service in self._services:
            relay(link, socket.create_connection(self._services[service], timeout=5))

    def close(self) -> None:
        """Accept nobody any more and close every connection."""
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ServiceTunnel:
    """A worker's local addresses of the run's services: each connection to one goes through the run's listener.

    host, port: of the run's listener.
    token: the run's.
    fingerprint: of what this worker trains.
    timeout: seconds that a connection to the listener may take.

    Raises: Refused, with the listener's reason; ShoestringError where none answers.
    """

    def __init__(self, host: str, port: int, token: str, fingerprint: RunFingerprint, *, timeout: float = 10.0) -> None:
        self._host, self._key, self._fingerprint, self._timeout = (host, port), derive_key(token), fingerprint, timeout
        self._connect("nothing").close()
        self._listeners = {name: self._open(name) for name in ("lighthouse", "store")}

    def _connect(self, service: str) -> socket.socket:
        request = {"service": service}
        return connect_to_host(self._host, self._key, self._fingerprint, request, timeout=self._timeout)[0]

    def _open(self, service: str) -> Listener[socket.socket]:
        return Listener(("127.0.0.1", 0), lambda link: self._connect(service), relay, max_handshakes=64)

    @property
    def lighthouse(self) -> tuple[str, int]:
        """The lighthouse's address on this machine."""
        return self._listeners["lighthouse"].address

    @property
    def store(self) -> tuple[str, int]:
        """The store's address on this machine."""
        return self._listeners["store"].address

    def close(self) -> None:
        """Close the connections made through it."""
        for listener in self._listeners.values():
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
