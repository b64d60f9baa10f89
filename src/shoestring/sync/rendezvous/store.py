"""A client of the run's key-value store that connects when it is needed, and anew after a failure."""

import socket
from datetime import timedelta

from torch.distributed import TCPStore

_CONNECT = 5.0


class StoreLink:
    """A connection to the store beside the lighthouse.

    address: of the store, as this process sees it.
    timeout: seconds that the store may take to answer.
    """

    def __init__(self, address: tuple[str, int], *, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._client: TCPStore | None = None

    def store(self) -> TCPStore:
        """The store, connected. Raises: OSError, RuntimeError where it is out of reach; its methods raise RuntimeError then."""
        if self._client is None:
            host, port = self._address
            # tried before, as TCPStore reports a closed port late and with pages of text
            socket.create_connection(self._address, timeout=_CONNECT).close()
            timeout = timedelta(seconds=max(self._timeout, _CONNECT))
            self._client = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        return self._client

    def drop(self) -> None:
        """Connect anew when it is needed next."""
        self._client = None
