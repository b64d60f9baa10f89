"""Exchanges that a thread carries out, one after another."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any

from torch import Tensor

from shoestring.sync.transport.base import PeerLost

Messages = list[Tensor | None]

_LOOK = 0.2
"""Seconds between two looks at whether an exchange can still come to its end."""


class ExchangeThread:
    """Carries out what it is given, in that order. It never keeps the program from ending, whatever it waits for."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Messages], Callable[..., Messages], tuple[Any, ...]] | None]
        self._tasks = queue.SimpleQueue()
        self._dropping = False
        self._thread = threading.Thread(target=self._run, name="shoestring-exchange", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[..., Messages], *arguments: Any) -> "Future[Messages]":
        if self._dropping:
            raise PeerLost(-1, "the transport is closed")
        future: Future[Messages] = Future()
        self._tasks.put((future, task, arguments))
        return future

    def close(self, *, wait: bool) -> None:
        """Drop what has not begun. wait: until what has begun is at its end."""
        self._dropping = True
        self._tasks.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (each := self._tasks.get()) is not None:
            future, task, arguments = each
            if self._dropping:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task(*arguments))
            except BaseException as error:
                future.set_exception(error)


class Queued:
    """A `Pending` over the future of a thread's work. watch: called while the result is waited for; it may raise PeerLost."""

    def __init__(self, future: "Future[Messages]", watch: Callable[[], None] | None = None) -> None:
        self._future, self._watch = future, watch

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Messages:
        while self._watch is not None and not self._future.done():
            wait([self._future], timeout=_LOOK)
            if not self._future.done():
                self._watch()
        try:
            return self._future.result()
        except CancelledError:
            raise PeerLost(-1, "the transport was closed before this exchange") from None
