"""The store by the lighthouse, as a worker reaches it: connected when it is needed, and anew after a failure."""

import socket
from datetime import timedelta

from torch.distributed import TCPStore

_CONNECT = 5.0


class StoreLink:
    """address: of the store, as this process sees it. timeout: seconds that the store may take to answer."""

    def __init__(self, address: tuple[str, int], *, timeout: float) -> None:
        self._address, self._timeout = address, timeout
        self._client: TCPStore | None = None

    def store(self) -> TCPStore:
        """Raises: OSError, RuntimeError where it is out of reach; what is asked of it raises RuntimeError then."""
        if self._client is None:
            host, port = self._address
            # asked before, as TCPStore tells of a closed port late and with pages of text
            socket.create_connection(self._address, timeout=_CONNECT).close()
            patience = timedelta(seconds=max(self._timeout, _CONNECT))
            self._client = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
        return self._client

    def drop(self) -> None:
        """Connect anew when it is next needed."""
        self._client = None
