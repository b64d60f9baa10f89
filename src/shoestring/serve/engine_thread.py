"""An engine in a thread of its own: requests go in from an event loop, and what each pass brought comes back to it."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from shoestring.decode import AnswerSpent, Engine, Event, Request

log = logging.getLogger("shoestring.serve")


class AnswerListener(Protocol):
    """Who asked for something."""

    def hear(self, event: Event) -> tuple[Any, bool]:
        """In the engine's thread. Returns (what `tell` is to be given; whether this answer is to end here)."""
        ...

    def tell(self, told: Any) -> None:
        """In the event loop: what `hear` made of an event, or the exception that ended the request."""
        ...


@dataclass(frozen=True)
class EngineStep:
    """What one step of an engine was.

    places: that were computed. seconds: that it took. waiting: answers without a place after it.
    free: tokens that the store has room for after it.
    dropped: what answers took whose requests were cancelled.
    notes: what the engine has to say since the step before.
    """

    places: int
    seconds: float
    waiting: int
    free: int
    dropped: tuple[AnswerSpent, ...] = ()
    notes: tuple[str, ...] = ()


class _Submit(NamedTuple):
    number: int
    request: Request
    listener: AnswerListener


class _Cancel(NamedTuple):
    number: int


class Stopped(Exception):
    """The thread was stopped before the request was answered."""


@dataclass
class _Asked:
    """A request in the engine. number: ours. left: answers that are not at their end."""

    number: int
    listener: AnswerListener
    left: int


class EngineThread:
    """Runs an engine, step after step, while there is something to do.

    A step that fails ends the requests that were being answered, with the exception; a new engine goes on.

    make: an engine. It is called in the thread, first and after a failure.
    loop: where listeners are told.
    on_pass: told of each step, in the loop, after the listeners of it.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        loop: asyncio.AbstractEventLoop,
        on_pass: Callable[[EngineStep], None],
        name: str,
    ) -> None:
        self._make, self._loop, self._on_pass = make, loop, on_pass
        self._orders: queue.SimpleQueue[_Submit | _Cancel | None] = queue.SimpleQueue()
        self._numbers = 0
        self._asked: dict[int, _Asked] = {}
        """By the engine's number; of the thread alone, as is:"""
        self._tickets: dict[int, int] = {}
        """The engine's numbers by ours."""
        self._ready: asyncio.Future[Engine] = loop.create_future()
        self.dead: BaseException | None = None
        """What ended the thread, where it ended by itself: no engine could be made."""
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)

    async def start(self) -> Engine:
        """Begin; returns the first engine, whose sizes may be read. Raises: what making it raised."""
        self._thread.start()
        return await self._ready

    def submit(self, request: Request, listener: AnswerListener) -> int:
        """Have a request answered. Returns its number, for `cancel`."""
        self._numbers += 1
        self._orders.put(_Submit(self._numbers, request, listener))
        return self._numbers

    def cancel(self, number: int) -> None:
        """End all answers to a request; nobody is told. Nothing happens where it has ended."""
        self._orders.put(_Cancel(number))

    def stop(self) -> None:
        """End the thread, and what is being answered."""
        self._orders.put(None)

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    # ---- in the thread

    def _run(self) -> None:
        try:
            engine = self._make()
        except BaseException as error:
            self.dead = error
            self._post(self._ready.set_exception, error)
            return
        self._post(self._ready.set_result, engine)
        while True:
            if not self._obey(engine):
                return
            if not engine.busy:
                continue
            try:
                self._step(engine)
            except Exception as error:
                log.exception("a pass failed; its requests end, and a new engine goes on")
                self._fail(error)
                del engine  # its store, before there is another
                try:
                    engine = self._make()
                except BaseException as worse:
                    log.exception("no new engine could be made")
                    self.dead = worse
                    return

    def _obey(self, engine: Engine) -> bool:
        """Take in what was ordered; wait where there is nothing else to do. Returns whether to go on."""
        while True:
            try:
                order = self._orders.get(block=not engine.busy)
            except queue.Empty:
                return True
            if order is None:
                self._fail(Stopped())
                return False
            if isinstance(order, _Cancel):
                self._drop(engine, order.number)
                continue
            try:
                ticket = engine.submit(order.request)
            except Exception as error:  # of a wrong request, or of a constraint that cannot be copied
                self._post(order.listener.tell, error)
                continue
            self._tickets[order.number] = ticket
            self._asked[ticket] = _Asked(order.number, order.listener, order.request.samples)

    def _drop(self, engine: Engine, number: int) -> None:
        ticket = self._tickets.pop(number, None)
        if ticket is not None:
            del self._asked[ticket]
            engine.cancel(ticket)

    def _step(self, engine: Engine) -> None:
        began, passes, computed = time.perf_counter(), engine.passes, engine.computed
        events = engine.step()
        seconds = time.perf_counter() - began
        told, dropped = list[tuple[AnswerListener, Any]](), list[AnswerSpent]()
        for event in events:
            asked = self._asked.get(event.number)
            if asked is None:  # it was cancelled
                if event.spent is not None:
                    dropped.append(event.spent)
                continue
            try:
                made, ends = asked.listener.hear(event)
            except Exception as error:
                log.exception("an answer could not be written out")
                self._drop(engine, asked.number)
                told.append((asked.listener, error))
                continue
            told.append((asked.listener, made))
            if event.stop is not None:
                asked.left -= 1
            elif ends:
                engine.cancel(event.number, event.sample)
            if not asked.left:
                del self._asked[event.number], self._tickets[asked.number]
        places = engine.computed - computed if engine.passes > passes else 0
        notes, engine.notes[:] = tuple(engine.notes), []
        happened = EngineStep(places, seconds, engine.waiting, engine.store.free, tuple(dropped), notes)
        self._post(self._deliver, told, happened)

    def _fail(self, error: BaseException) -> None:
        for asked in self._asked.values():
            self._post(asked.listener.tell, error)
        self._asked.clear()
        self._tickets.clear()

    def _post(self, function: Callable[..., Any], *values: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *values)
        except RuntimeError:  # the loop is closed: nobody listens
            log.debug("nobody listens any more")

    # ---- in the loop

    def _deliver(self, told: list[tuple[AnswerListener, Any]], happened: EngineStep) -> None:
        for listener, made in told:
            listener.tell(made)
        self._on_pass(happened)
