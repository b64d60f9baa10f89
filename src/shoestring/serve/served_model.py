"""One model of a server: its engine, what it is asked at the moment, and how fast it is."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from shoestring.base.drafting import open_drafter, open_made
from shoestring.base.writer import Writer
from shoestring.contract.adapter import NamedAdapters
from shoestring.decode import Engine, Request, Sampling
from shoestring.decode.constraints.guided import Grammars
from shoestring.decode.pays import Pays
from shoestring.errors import UsageError
from shoestring.serve.admission import Admission, Promise, RequestBudget, rows_of, within
from shoestring.serve.answers import LENGTH, Asked, ServedAnswers
from shoestring.serve.engine_thread import EngineStep, EngineThread
from shoestring.serve.errors import ApiError
from shoestring.serve.forecast import ForecastRow
from shoestring.serve.metrics import Metrics
from shoestring.serve.rates import Rates
from shoestring.serve.settings import Settings

log = logging.getLogger("shoestring.serve")

NOTES = 20
"""That are kept of a model."""

TRIED = 256
"""Tokens of the prompt that is read to see how fast a model is, at most."""


class ServedModel:
    """Answers requests with one model.

    name: that clients call it by.
    writer: the model. settings: of its engine, and of the queue. metrics: of the server.
    adapters: of it, that requests may name; None: none.
    """

    def __init__(
        self,
        name: str,
        writer: Writer,
        settings: Settings,
        metrics: Metrics,
        adapters: NamedAdapters | None = None,
    ) -> None:
        self.name, self.writer, self.created = name, writer, int(time.time())
        self.adapters = adapters
        self._settings, self._metrics = settings, metrics
        self._first: tuple[tuple[int, float], ...] = ()
        self._grammars: dict[frozenset[int], Grammars] = {}
        self._lock = threading.Lock()
        self._going: dict[ServedAnswers, tuple[RequestBudget, float]] = {}
        self._thread: EngineThread | None = None
        self.notes: deque[str] = deque(maxlen=NOTES)
        """What a user should know of how it goes; the latest lines. Anybody may read them at /health."""

    def note(self, line: str) -> None:
        """Tell whoever looks after the server, once for each line."""
        if line not in self.notes:
            self.notes.append(line)
            log.warning("%s: %s", self.name, line)

    async def start(self) -> None:
        """Make the engine, and see how fast it is. Raises: UsageError where there is no room for it."""
        loop = asyncio.get_running_loop()
        self._thread = EngineThread(self._engine, loop, self._passed, self.name)
        engine = await self._thread.start()
        self.capacity, self.longest = engine.store.capacity, engine.store.longest
        self.rates = Rates(self._first)
        self.admission = Admission(self.rates, engine.rows, engine.tokens, self._settings.queue)
        self._metrics.has_room(self.name, self.capacity)

    def stop(self) -> None:
        """End all that is being answered."""
        if self._thread is not None:
            self._thread.stop()

    def join(self, seconds: float) -> None:
        """Wait until the engine has ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        return self._thread is not None and self._thread.dead is None

    @property
    def unfinished(self) -> int:
        """Answers that are not at their end."""
        return sum(len(each.written) - len(each.ended) for answers in self._going for each in answers.progress)

    @cached_property
    def vocabulary(self) -> int:
        """Tokens that a prompt may have."""
        return min(self.writer.opened.model.about.vocabulary, self.writer.tokenizer.vocabulary)

    def grammars(self, ends: frozenset[int]) -> Grammars:
        """Makes constraints for answers with these ends. Raises: UsageError where llguidance is not installed."""
        with self._lock:  # requests are prepared in several threads
            if ends not in self._grammars:
                self._grammars[ends] = self.writer.grammars(ends)
            return self._grammars[ends]

    def check(self, prompt: Sequence[int]) -> None:
        """Raises: ApiError where a prompt is empty, too long, or has tokens that the model does not know."""
        size, most = len(prompt), min(self.writer.context, self.longest)
        if not prompt:
            raise ApiError(400, "the prompt is empty: give some text to go on from", param="prompt", code="wrong_value")
        if size > most:
            said = f"the prompt has {size} tokens, and this model reads {most}: shorten it"
            raise ApiError(400, said, code="context_length_exceeded")
        if max(prompt) >= self.vocabulary:
            raise ApiError(400, f"a token of the prompt is beyond the vocabulary of {self.vocabulary}", param="prompt")

    def answer(self, asked: Asked, budget: RequestBudget, arrived: float) -> ServedAnswers:
        """Begin to answer; whoever has the answers closes them.

        arrived: when the request did, on the monotonic clock.
        Raises: ApiError where it is not taken in.
        """
        if self._thread is None or self._thread.dead is not None:
            raise ApiError(503, f"model '{self.name}' cannot answer any more", code="model_failed")
        deadline = arrived + budget.seconds
        least = min(budget.least, *(request.max_new_tokens for request in asked.requests), 1 << 31)
        budget = replace(budget, seconds=max(deadline - time.monotonic(), 0.0), least=least)
        requests = within(budget, asked.requests, self.writer.opened.model, self.adapters)
        self.admission.check(budget, requests, self._promises())
        answers = ServedAnswers(self._thread, replace(asked, requests=requests), self._ended)
        self._going[answers] = budget, deadline
        return answers

    def _promises(self) -> Collection[Promise]:
        found = list[Promise]()
        for answers, (budget, deadline) in self._going.items():
            rows, written = list[ForecastRow](), list[int]()
            for each in answers.progress:
                rows += rows_of(each.request, each.written, self.rates.share, each.ended)
                written += [count for place, count in enumerate(each.written) if place not in each.ended]
            if rows:
                found.append(Promise(rows, deadline, budget.least, min(written)))
        return found

    def _ended(self, answers: ServedAnswers) -> None:
        self._going.pop(answers, None)
        allowed = answers.asked.requests[0].max_new_tokens
        for ended in answers.ended:
            self._metrics.ended(self.name, ended.spent)
            if ended.reason == "stop" or ended.detail == LENGTH:
                self.rates.observe_answer(max(ended.spent.charge.written, 1), allowed)

    def _passed(self, happened: EngineStep) -> None:
        for line in happened.notes:
            self.note(line)
        if happened.places:
            self.rates.observe(happened.places, happened.seconds)
        self._metrics.passed(self.name, happened, self.unfinished)
        for spent in happened.dropped:
            self._metrics.ended(self.name, spent)

    # ---- in the engine's thread

    def _engine(self) -> Engine:
        settings = self._settings
        opened = self.writer.opened
        drafter = open_drafter(settings.drafter, settings.draft, opened)
        engine = Engine(
            opened.model,
            rows=settings.rows,
            tokens=settings.tokens,
            drafter=drafter,
            depth=open_made("depth", settings.depth, settings.routers, opened),
            mixture=open_made("mixture", settings.mixture, settings.datastore, opened),
            pays=Pays() if drafter else None,
            room=settings.room,
            adapters=self.adapters,
            cache=settings.cache,
        )
        if isinstance(slow := getattr(opened.model, "native", None), str):
            engine.notes.append(f"passes go module by module, which is slower: {slow}")
        if not self._first:
            self._first = measured(engine, min(self.vocabulary, engine.store.longest, self.writer.context))
        return engine


def measured(engine: Engine, most: int) -> tuple[tuple[int, float], ...]:
    """Passes of an engine that has nothing else to do: (places, seconds) of each.

    most: tokens of a prompt that can be read.
    """
    size = max(1, min(TRIED, engine.tokens, most - 4))
    found = list[tuple[int, float]]()
    for turn in range(2):  # the first passes load what the others find loaded
        prompt = tuple((place + turn) % most for place in range(size))
        engine.submit(Request(prompt, Sampling(temperature=0), 3))
        found = []
        while engine.busy:
            before, began = engine.computed, time.perf_counter()
            engine.step()
            if engine.computed > before:
                found.append((engine.computed - before, time.perf_counter() - began))
    return tuple(found)


@dataclass(frozen=True)
class Called:
    """What a request calls a model: the model, and the one of its adapters that it is to be read with."""

    model: ServedModel
    adapter: str | None = None

    @property
    def name(self) -> str:
        """MODEL, or MODEL:ADAPTER."""
        return self.model.name if self.adapter is None else f"{self.model.name}:{self.adapter}"


def all_called(models: Sequence[ServedModel]) -> list[Called]:
    """Every model, by itself and with each of its adapters."""
    alone = [Called(model) for model in models]
    return alone + [Called(model, name) for model in models if model.adapters for name in model.adapters.names]


def named(models: Sequence[ServedModel], name: str | None) -> Called:
    """What a request names: MODEL, MODEL:ADAPTER, or ADAPTER where one model has one of that name. Where there is only one model,
    it need not be named. Raises: ApiError."""
    if name is None:
        if len(models) == 1:
            return Called(models[0])
        raise ApiError(
            400, "'model' is missing, and there are several: see /v1/models", param="model", code="missing_field"
        )
    known = all_called(models)
    for called in known:
        if called.name == name:
            return called
    alone = [called for called in known if called.adapter == name]
    if len(alone) == 1:
        return alone[0]
    raise ApiError(404, f"there is no model '{name[:80]}': see /v1/models", param="model", code="model_not_found")


def names_of(places: Sequence[str]) -> list[tuple[str, str]]:
    """(name, place) of each: of NAME=PLACE both are given, else the name is the last part of the place. Raises: UsageError."""
    found = list[tuple[str, str]]()
    for word in places:
        name, equals, place = word.partition("=")
        if not equals or "/" in name:
            name, place = word.rstrip("/").rpartition("/")[2].partition("@")[0].removesuffix(".gguf"), word
        name = name.removeprefix("hf:") or "model"
        if name in dict(found):
            raise UsageError(f"two models would be called '{name}': give each a name, as NAME=PLACE")
        found.append((name, place))
    return found
