"""Notices that all workers of a run can read: who has come, and that it is over. They lie in the store by the lighthouse."""

import time
from collections.abc import Callable
from typing import TypeVar

from torch.distributed import TCPStore

from shoestring.errors import ShoestringError, first_line
from shoestring.sync.store import StoreLink

_LOOK = 0.05
_OVER, _BEGUN = "board/over", "board/begun"

Answer = TypeVar("Answer")


class Board:
    """address: of the store, as this process sees it. Every method raises ShoestringError where it is out of reach."""

    def __init__(self, address: tuple[str, int], *, timeout: float = 30.0) -> None:
        self._link = StoreLink(address, timeout=timeout)

    def _ask(self, question: Callable[[TCPStore], Answer]) -> Answer:
        try:
            return question(self._link.store())
        except (OSError, RuntimeError) as error:
            self._link.drop()
            raise ShoestringError(f"the run's lighthouse is out of reach: {first_line(error)}") from None

    def _post(self, notice: str, text: str) -> None:
        self._ask(lambda store: store.set(notice, text))

    def _count(self, names: list[str]) -> int:
        return self._ask(lambda store: sum(store.check([name]) for name in names))

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
        return self._ask(lambda store: store.get(_OVER).decode() if store.check([_OVER]) else "")
