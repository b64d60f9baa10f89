"""The status of a run, which all its workers can read: who has arrived, and whether it is over."""

import time
from collections.abc import Callable
from typing import TypeVar

from torch.distributed import TCPStore

from shoestring.errors import ShoestringError, first_line
from shoestring.sync.rendezvous.store import StoreLink

_POLL = 0.05
_OVER, _BEGUN = "status/over", "status/begun"

Answer = TypeVar("Answer")


class RunStatus:
    """The status of a run, in the store beside its lighthouse. Each method raises ShoestringError where that is out of reach.

    address: of the store, as this process sees it.
    timeout: seconds that the store may take to answer.
    """

    def __init__(self, address: tuple[str, int], *, timeout: float = 30.0) -> None:
        self._link = StoreLink(address, timeout=timeout)

    def _ask(self, question: Callable[[TCPStore], Answer]) -> Answer:
        try:
            return question(self._link.store())
        except (OSError, RuntimeError) as error:
            self._link.drop()
            raise ShoestringError(f"the run's lighthouse is out of reach: {first_line(error)}") from None

    def _set(self, key: str, text: str) -> None:
        self._ask(lambda store: store.set(key, text))

    def _count(self, keys: list[str]) -> int:
        return self._ask(lambda store: sum(store.check([key]) for key in keys))

    def wait_for_start(self, identity: str, expected: list[str], *, timeout: float) -> None:
        """Wait until a run begins: all `expected` workers have arrived, `timeout` seconds have passed, or it has begun before.

        The run has begun from then on. Each worker has sent the lighthouse a heartbeat before it calls this.

        identity: this worker's name.
        expected: the names of those that begin the run together.
        """
        self._set(f"status/arrived/{identity}", "")
        end = time.monotonic() + timeout
        names = [f"status/arrived/{each}" for each in expected]
        while not self._count([_BEGUN]) and self._count(names) < len(names) and time.monotonic() < end:
            time.sleep(_POLL)
        self._set(_BEGUN, "")

    def mark_finished(self, identity: str) -> None:
        """Note that the run is over. identity: the worker that evaluated it."""
        self._set(_OVER, identity)

    def finished_by(self) -> str:
        """The worker that evaluated the finished run; '' while the run goes on."""
        return self._ask(lambda store: store.get(_OVER).decode() if store.check([_OVER]) else "")
