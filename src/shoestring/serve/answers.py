"""The answers to one request, as they are written: tokens of the engine become pieces of text."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from shoestring.decode import AnswerSpent, Event, Request, Stop
from shoestring.decode.answer_text import AnswerText, Detokenizer
from shoestring.decode.request import Written
from shoestring.decode.sampling import LogProbability
from shoestring.serve.engine_thread import EngineThread
from shoestring.serve.tool_calls import ToolFormat

STOP_STRING = "a stop string came"
GRAMMAR = "the grammar became too complex"
LENGTH = "max_tokens reached"


@dataclass(frozen=True)
class AnswerEnd:
    """How an answer ended. reason: OpenAI's word, 'stop' or 'length'. detail: in plain words. spent: what it took."""

    reason: str
    detail: str
    spent: AnswerSpent


@dataclass(frozen=True)
class AnswerPiece:
    """What is new of an answer.

    answer: its place among those of the request: prompt by prompt, and for each its samples.
    text: new text. tokens: how many new ones. chances: their log-probabilities, where they were asked for.
    ended: where it is at its end.
    """

    answer: int
    text: str
    tokens: int
    chances: tuple[LogProbability, ...] = ()
    ended: AnswerEnd | None = None


@dataclass(frozen=True)
class Asked:
    """What is asked of a model.

    requests: one a prompt, all with as many samples.
    stops: strings of which any ends an answer.
    stream: makes a decoder of tokens.
    form: how the model writes calls of tools; None: whatever it writes is text. tools: the names of those that it may call.
    """

    requests: Sequence[Request]
    stops: Sequence[str]
    stream: Callable[[], Detokenizer]
    form: ToolFormat | None = None
    tools: frozenset[str] = frozenset()

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return self.requests[0].samples

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(request.prompt) for request in self.requests)


@dataclass
class Progress:
    """How far the answers to one prompt are. written: tokens of each. ended: which are at their end."""

    request: Request
    written: list[int]
    ended: set[int] = field(default_factory=set)


class _Texts:
    """Those of one prompt: the `AnswerListener` of its request."""

    def __init__(self, answers: "ServedAnswers", place: int, asked: Asked) -> None:
        self._answers, self._request = answers, asked.requests[place]
        self._first = place * asked.samples
        self._texts = [AnswerText(asked.stream(), asked.stops) for _ in range(asked.samples)]
        self.progress = Progress(self._request, [0] * asked.samples)

    def hear(self, event: Event) -> tuple[AnswerPiece, bool]:
        """In the engine's thread."""
        text, pushed, taken = self._texts[event.sample], list[str](), list[Written]()
        for written in event.written:
            if text.stopped:
                break
            pushed.append(text.push(written.token))
            taken.append(written)
        ended = None
        if event.stop is not None:
            pushed.append(text.finish())
            ended = self._ended(text, event.stop, event.spent or AnswerSpent())
        chances = tuple(each.log_probability for each in taken if each.log_probability is not None)
        piece = AnswerPiece(self._first + event.sample, "".join(pushed), len(taken), chances, ended)
        return piece, bool(text.stopped)

    def _ended(self, text: AnswerText, stop: Stop, spent: AnswerSpent) -> AnswerEnd:
        if text.stopped:
            return AnswerEnd("stop", STOP_STRING, spent)
        if getattr(self._request.constraint, "failures", None):
            return AnswerEnd("length", GRAMMAR, spent)
        detail = LENGTH if stop is Stop.LENGTH else str(stop)
        return AnswerEnd("stop" if stop is Stop.END else "length", detail, spent)

    def tell(self, told: AnswerPiece | Exception) -> None:
        """In the event loop."""
        if isinstance(told, AnswerPiece):
            sample = told.answer - self._first
            self.progress.written[sample] += told.tokens
            if told.ended is not None:
                self.progress.ended.add(sample)
        self._answers.tell(told)


class ServedAnswers:
    """What a model answers to one request of a client; begun when it is made.

    on_end: told in the event loop when no more comes, however it ended.
    """

    def __init__(self, thread: EngineThread, asked: Asked, on_end: Callable[["ServedAnswers"], None]) -> None:
        self.asked, self._thread, self._on_end = asked, thread, on_end
        self.begun = asyncio.get_running_loop().time()
        self._told: asyncio.Queue[AnswerPiece | Exception] = asyncio.Queue()
        self._texts = [_Texts(self, place, asked) for place in range(len(asked.requests))]
        self._open = len(asked.requests) * asked.samples
        self.ended: list[AnswerEnd] = []
        self._numbers = [
            thread.submit(request, texts) for request, texts in zip(asked.requests, self._texts, strict=True)
        ]

    @property
    def progress(self) -> list[Progress]:
        """Of each prompt."""
        return [texts.progress for texts in self._texts]

    def tell(self, told: AnswerPiece | Exception) -> None:
        """A piece of one of them, or what went wrong with all."""
        self._told.put_nowait(told)

    async def pieces(self) -> AsyncIterator[AnswerPiece]:
        """What is new, until all are at their ends. Raises: what went wrong with one."""
        while self._open:
            told = await self._told.get()
            if isinstance(told, Exception):
                raise told
            if told.ended is not None:
                self._open -= 1
                self.ended.append(told.ended)
            yield told

    def close(self) -> None:
        """Nobody wants more: what is still being written is cancelled, and its room is free."""
        if self._open:
            for number in self._numbers:
                self._thread.cancel(number)
        self._on_end(self)
