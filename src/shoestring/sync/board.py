"""Notices that all workers of a run can read: who has come, and that it is over. They lie in the store by the lighthouse."""

import socket
import time
from datetime import timedelta

from torch.distributed import TCPStore

from shoestring.errors import ShoestringError

_CONNECT = 5.0
_LOOK = 0.05
_OVER, _BEGUN = "board/over", "board/begun"


class Board:
    """address: of the store, as this process sees it. Every method raises ShoestringError where it is out of reach."""

    def __init__(self, address: tuple[str, int], *, timeout: float = 30.0) -> None:
        self._address, self._timeout = address, timeout
        self._client: TCPStore | None = None

    def _store(self) -> TCPStore:
        if self._client is None:
            host, port = self._address
            try:
                # asked before, as TCPStore tells of a closed port late and with pages of text
                socket.create_connection(self._address, timeout=_CONNECT).close()
                patience = timedelta(seconds=self._timeout)
                self._client = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
            except (OSError, RuntimeError) as error:
                raise ShoestringError(f"the run's lighthouse is out of reach: {_line(error)}") from None
        return self._client

    def _post(self, notice: str, text: str) -> None:
        try:
            self._store().set(notice, text)
        except RuntimeError as error:
            self._client = None
            raise ShoestringError(f"the run's lighthouse is out of reach: {_line(error)}") from None

    def _count(self, names: list[str]) -> int:
        try:
            store = self._store()
            return sum(store.check([name]) for name in names)
        except RuntimeError as error:
            self._client = None
            raise ShoestringError(f"the run's lighthouse is out of reach: {_line(error)}") from None

    def assemble(self, identity: str, expected: list[str], *, patience: float) -> None:
        """Come to the beginning of a run: return once all `expected` workers are there, `patience` seconds have passed, or the
        run has begun already; it has begun from then on. All have shown a sign of life at the lighthouse before."""
        self._post(f"board/came/{identity}", "")
        end = time.monotonic() + patience
        names = [f"board/came/{each}" for each in expected]
        while not self._count([_BEGUN]) and self._count(names) < len(names) and time.monotonic() < end:
            time.sleep(_LOOK)
        self._post(_BEGUN, "")

    def close_run(self, identity: str) -> None:
        """Post that the run is over, and which worker has judged it."""
        self._post(_OVER, identity)

    def over(self) -> str:
        """Which worker has judged the run; '' while it goes on."""
        if not self._count([_OVER]):
            return ""
        return self._store().get(_OVER).decode()


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
