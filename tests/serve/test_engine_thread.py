"""An engine in its thread: what comes back, what is cancelled, what happens where a pass fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shoestring.decode import Engine, Event, Request, Sampling
from shoestring.decode.store import PagedStore
from shoestring.serve.engine_thread import EngineStep, EngineThread, Stopped
from tests.decode.random_models import native, one_by_one

GREEDY = Sampling(temperature=0)
LIMIT = 60


class Collector:
    """Hears all, and can do more while it does. gate: the engine waits for it before the second thing that is heard."""

    def __init__(
        self, asked: int = 1, meanwhile: Callable[[Event], bool] | None = None, gate: threading.Event | None = None
    ) -> None:
        self._meanwhile, self._left, self._gate, self._heard = meanwhile, asked, gate, 0
        self.tokens: dict[int, list[int]] = {}
        self.error: Exception | None = None
        self.done = asyncio.Event()
        self.first = asyncio.Event()

    def hear(self, event: Event) -> tuple[Any, bool]:
        assert threading.current_thread() is not threading.main_thread()
        self._heard += 1
        if self._gate is not None and self._heard == 2:
            assert self._gate.wait(LIMIT)
        return event, bool(self._meanwhile and self._meanwhile(event))

    def tell(self, told: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.first.set()
        if isinstance(told, Exception):
            self.error = told
            self.done.set()
            return
        self.tokens.setdefault(told.sample, []).extend(each.token for each in told.written)
        self._left -= told.stop is not None
        if not self._left:
            self.done.set()

    async def wait(self) -> list[int]:
        await asyncio.wait_for(self.done.wait(), LIMIT)
        if self.error is not None:
            raise self.error
        return self.tokens[0]


class Fixture:
    """A thread with a small engine, and what it told."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.passes: list[EngineStep] = []
        self.passed = asyncio.Event()
        self.thread: EngineThread = EngineThread(self.make, asyncio.get_running_loop(), self.happened, "test")

    def make(self) -> Engine:
        model = native()
        self.engines.append(Engine(model, store=PagedStore(model, 40, 4), rows=4, tokens=16))
        return self.engines[-1]

    def happened(self, one: EngineStep) -> None:
        self.passes.append(one)
        self.passed.set()

    async def free(self) -> None:
        """Until the store has all its room again."""
        store = self.engines[-1].store
        while store.free < store.capacity:
            self.passed.clear()
            await asyncio.wait_for(self.passed.wait(), LIMIT)


@asynccontextmanager
async def running() -> AsyncIterator[Fixture]:
    made = Fixture()
    await made.thread.start()
    try:
        yield made
    finally:
        made.thread.stop()
        await asyncio.get_running_loop().run_in_executor(None, made.thread.join, LIMIT)


def run(work: Callable[[Fixture], Any]) -> None:
    async def inside() -> None:
        async with running() as made:
            await work(made)

    asyncio.run(inside())


def test_answers_come_to_those_who_asked() -> None:
    async def work(made: Fixture) -> None:
        asked = {(5,): Collector(), (1, 2, 3): Collector(), tuple(range(30)): Collector()}
        for prompt, collector in asked.items():
            made.thread.submit(Request(prompt, GREEDY, 10), collector)
        for prompt, collector in asked.items():
            assert await collector.wait() == one_by_one(native(), prompt, 10)
        assert sum(one.places for one in made.passes) == made.engines[0].computed
        assert made.passes[-1].free == made.engines[0].store.capacity

    run(work)


def test_what_is_cancelled_leaves_its_room_and_tells_nobody() -> None:
    async def work(made: Fixture) -> None:
        gate = threading.Event()
        gone, stays = Collector(gate=gate), Collector()
        number = made.thread.submit(Request((5, 6), GREEDY, 60), gone)
        made.thread.submit(Request((7,), GREEDY, 10), stays)
        await asyncio.wait_for(gone.first.wait(), LIMIT)
        for each in (number, number, 999):
            made.thread.cancel(each)
        gate.set()
        assert await stays.wait() == one_by_one(native(), (7,), 10)
        await made.free()
        assert not gone.done.is_set()
        assert len(gone.tokens[0]) < 60

    run(work)


def test_one_of_several_answers_ends_where_its_hearer_says() -> None:
    async def work(made: Fixture) -> None:
        collector = Collector(3, meanwhile=lambda event: event.sample == 1)
        made.thread.submit(Request((5, 6), Sampling(seed=1), 12, samples=3), collector)
        await collector.wait()
        assert [len(collector.tokens[sample]) for sample in (0, 2)] == [12, 12]
        assert len(collector.tokens[1]) < 12

    run(work)


def test_a_pass_that_fails_ends_its_requests_and_no_others() -> None:
    async def work(made: Fixture) -> None:
        gate = threading.Event()
        broken = [Collector(gate=gate), Collector()]
        for collector in broken:
            made.thread.submit(Request((5,), GREEDY, 40), collector)
        await asyncio.wait_for(broken[0].first.wait(), LIMIT)

        def fail(*_: Any) -> Any:
            raise RuntimeError("out of memory")

        made.engines[0].store.read = fail  # type: ignore[method-assign, assignment]
        gate.set()
        for collector in broken:
            with pytest.raises(RuntimeError, match="out of memory"):
                await collector.wait()
        after = Collector()
        made.thread.submit(Request((5,), GREEDY, 10), after)
        assert await after.wait() == one_by_one(native(), (5,), 10)
        assert len(made.engines) == 2
        await made.free()

    run(work)


def test_a_hearer_that_fails_harms_itself_alone() -> None:
    def fail(event: Event) -> bool:
        raise ValueError("cannot be written out")

    async def work(made: Fixture) -> None:
        bad, good = Collector(meanwhile=fail), Collector()
        made.thread.submit(Request((5,), GREEDY, 10), bad)
        made.thread.submit(Request((6,), GREEDY, 10), good)
        with pytest.raises(ValueError, match="cannot be written out"):
            await bad.wait()
        assert await good.wait() == one_by_one(native(), (6,), 10)
        assert len(made.engines) == 1
        await made.free()

    run(work)


def test_what_the_engine_refuses_is_told() -> None:
    async def work(made: Fixture) -> None:
        collector = Collector()
        made.thread.submit(Request((5,) * 65), collector)
        with pytest.raises(Exception, match="the prompt has 65 tokens"):
            await collector.wait()

    run(work)


def test_who_waits_when_it_stops_is_told() -> None:
    async def work(made: Fixture) -> None:
        gate = threading.Event()
        collector = Collector(gate=gate)
        made.thread.submit(Request((5,), GREEDY, 60), collector)
        await asyncio.wait_for(collector.first.wait(), LIMIT)
        made.thread.stop()
        gate.set()
        with pytest.raises(Stopped):
            await collector.wait()

    run(work)


def test_an_engine_that_cannot_be_made_is_no_silence() -> None:
    async def inside() -> None:
        def make() -> Engine:
            raise MemoryError("too large")

        thread = EngineThread(make, asyncio.get_running_loop(), lambda one: None, "test")
        with pytest.raises(MemoryError, match="too large"):
            await thread.start()
        assert isinstance(thread.dead, MemoryError)

    asyncio.run(inside())
