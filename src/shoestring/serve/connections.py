"""Connections that do not wait for slow clients without end."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""That a request's headers may take to arrive, from a connection's or their own first byte on."""

WRITE_SECONDS = 30.0
"""That a client may leave what is sent to it unread, once no more of it fits on the way."""


class Connection(H11Protocol):
    """uvicorn's connection, which is cut where the other side does not send its headers, or does not read its answer.

    Its request is then told that its client is gone.
    """

    head_seconds, write_seconds = HEAD_SECONDS, WRITE_SECONDS

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin("head", self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end("head")
        elif "head" not in self._timers and not self.transport.is_closing():
            self._begin("head", self.head_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin("write", self.write_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end("write")

    def _begin(self, what: str, seconds: float) -> None:
        self._end(what)
        self._timers[what] = self.loop.call_later(seconds, self.transport.abort)

    def _end(self, what: str) -> None:
        timer = self._timers.pop(what, None)
        if timer is not None:
            timer.cancel()
