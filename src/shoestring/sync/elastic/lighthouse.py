"""The lighthouse: the one place where workers that come and go learn who takes part in a round, and its outcome."""

import os
import socket
from datetime import timedelta
from types import ModuleType, TracebackType
from typing import Self

from torch.distributed import TCPStore

from shoestring.errors import UsageError

BACKLOG = 128


def coordination() -> ModuleType:
    """torchft's coordination module, imported late (it takes seconds) and with its log at warnings and above.

    torchft logs every quorum at level 'info' to stderr. Its logger reads RUST_LOG once, when it is imported. A RUST_LOG that
    the user has set is left as it is.

    Raises: UsageError where torchft is not installed.
    """
    set_by_user = os.environ.get("RUST_LOG")
    os.environ["RUST_LOG"] = set_by_user or "warn"
    try:
        import torchft.coordination
    except ImportError as error:
        raise UsageError(f"workers that come and go need torchft ({error}): pip install torchft") from None
    finally:
        if set_by_user is None:
            del os.environ["RUST_LOG"]
    return torchft.coordination


class Lighthouse:
    """torchft's LighthouseServer, which forms quorums, and a key-value store beside it; a context manager.

    Neither checks who speaks to it, so both listen on the loopback alone; a `RunListener` forwards workers to them. The store
    carries the addresses of a round's members and the outcome of each round. It is here, and not with a worker, so that it
    outlives any of them.

    bind: 'host:port' of the lighthouse, port 0 for any that is free.
    min_replicas: a round has at least so many workers.
    join_timeout: seconds that workers that are ready wait for those that are alive but still busy. It must exceed what the
    workers' times for their inner steps differ by: whoever is later is left out and must heal.
    quorum_tick: seconds between two checks for a quorum.
    heartbeat_timeout: seconds without a heartbeat until a worker counts as dead.

    Raises: UsageError where it cannot listen there, for timeouts of zero or less, and without torchft.
    """

    def __init__(
        self,
        bind: str = "127.0.0.1:0",
        *,
        min_replicas: int = 1,
        join_timeout: float = 60.0,
        quorum_tick: float = 0.05,
        heartbeat_timeout: float = 5.0,
    ) -> None:
        host, _, port = bind.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"'{bind}' is not HOST:PORT")
        if min_replicas < 1 or min(join_timeout, quorum_tick, heartbeat_timeout) <= 0:
            raise UsageError("a lighthouse needs min_replicas of 1 or more and timeouts above zero")
        self._host = host
        listener = socket.create_server((host, 0), backlog=BACKLOG)
        self._store_port: int = listener.getsockname()[1]
        # TCPStore binds to every interface unless it is given a socket that is bound already
        self._store: TCPStore | None = TCPStore(
            host,
            self._store_port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=join_timeout),
            master_listen_fd=listener.detach(),
        )
        try:
            self._server = coordination().LighthouseServer(
                bind=bind,
                min_replicas=min_replicas,
                join_timeout_ms=round(join_timeout * 1000),
                quorum_tick_ms=max(1, round(quorum_tick * 1000)),
                heartbeat_timeout_ms=round(heartbeat_timeout * 1000),
            )
        except RuntimeError as error:
            raise UsageError(f"no lighthouse can be opened at {bind}: {error}") from None
        # torchft gives the machine's name, which need not lead to the loopback
        self._port = int(self._server.address().rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        """Where the lighthouse listens."""
        return self._host, self._port

    @property
    def store_address(self) -> tuple[str, int]:
        """Where the store listens."""
        return self._host, self._store_port

    @property
    def services(self) -> dict[str, tuple[str, int]]:
        """What a `RunListener` forwards to, by name."""
        return {"lighthouse": self.address, "store": self.store_address}

    def close(self) -> None:
        """Stop both; a worker that asks afterwards gets no quorum."""
        self._server.shutdown()
        self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
