"""The application: OpenAI's paths, health, metrics and a page to chat on."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shoestring.serve.admission import read_budget
from shoestring.serve.answers import Asked, ServedAnswers
from shoestring.serve.engine_thread import Stopped
from shoestring.serve.errors import ApiError, internal
from shoestring.serve.fields import ChatFields, Common, CompletionFields, read_fields
from shoestring.serve.guard import Guard
from shoestring.serve.http import as_json, read_body, send_events, send_whole, until_gone
from shoestring.serve.metrics import Metrics
from shoestring.serve.prepare import prepare_chat, prepare_completion
from shoestring.serve.served_model import Called, ServedModel, all_called, named
from shoestring.serve.settings import Settings
from shoestring.serve.shapes import AnswerShape, ChatShape, CompletionShape, usage

JOIN = 30.0
"""Seconds that an engine may take to end."""

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing, and talks to this server alone."""


class Service:
    """The models of a server, and what all of them share.

    models: the first is the page's choice.
    """

    def __init__(self, models: Sequence[ServedModel], settings: Settings, metrics: Metrics) -> None:
        self.models, self.settings, self.metrics = list(models), settings, metrics
        self.draining = False
        """Whether nothing new is taken in."""
        self.active = 0
        """Requests that are being answered."""
        self.failure: BaseException | None = None
        """Why an engine could not be made."""
        # tokens, templates and grammars are made beside the loop
        self.workers = ThreadPoolExecutor(2, "prepare")

    async def start(self) -> None:
        """Make the engines. Raises: what making one raised."""
        try:
            for model in self.models:
                await model.start()
        except BaseException as error:
            self.failure = error
            raise

    def stop(self) -> None:
        """End all that is being answered, and the engines."""
        for model in self.models:
            model.stop()
        for model in self.models:
            model.join(JOIN)
        self.workers.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class CompletionKind:
    """One of the two kinds of completions."""

    prefix: str
    fields: type[Common]
    prepare: Callable[[Any, ServedModel, int], Asked]


CHAT = CompletionKind("chatcmpl", ChatFields, prepare_chat)
COMPLETION = CompletionKind("cmpl", CompletionFields, prepare_completion)


class Completions:
    """The ASGI application of one kind of completions."""

    def __init__(self, service: Service, kind: CompletionKind) -> None:
        self._service, self._kind = service, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived, settings = time.monotonic(), self._service.settings
        if self._service.active >= settings.rows + settings.queue:
            raise ApiError(429, "the queue is full", code="queue_full", retry=1)
        self._service.active += 1
        try:
            body = await read_body(scope, receive, settings.body, settings.body_seconds)
            await until_gone(receive, self._answer(scope, body, send, arrived))
        finally:
            self._service.active -= 1

    async def _answer(self, scope: Scope, body: bytes, send: Send, arrived: float) -> None:
        fields = read_fields(self._kind.fields, body)
        called = named(self._service.models, fields.model)
        model = called.model
        header = dict(scope["headers"]).get(b"shoestring-budget")
        budget = read_budget(fields.budget, None if header is None else header.decode("latin-1"), fields.limit)
        prepare = partial(self._kind.prepare, fields, model, self._service.settings.answer)
        asked = await asyncio.get_running_loop().run_in_executor(self._service.workers, prepare)
        if called.adapter is not None:
            asked = replace(asked, requests=[replace(each, adapter=called.adapter) for each in asked.requests])
        identity = f"{self._kind.prefix}-{secrets.token_hex(12)}"
        shape = self._shape(identity, fields, called, asked)
        answers = model.answer(asked, budget, arrived)
        headers = {"x-request-id": identity}
        try:
            if fields.stream:
                told = bool(fields.stream_options and fields.stream_options.include_usage)
                await send_events(send, _events(answers, shape, arrived, told), headers)
            else:
                try:
                    pieces = [piece async for piece in answers.pieces()]
                except Exception as error:
                    raise _said(error) from error
                took = usage(answers, time.monotonic() - arrived)
                await send_whole(send, 200, as_json(shape.whole(pieces, took)), headers=headers)
        finally:
            answers.close()

    def _shape(self, identity: str, fields: Common, called: Called, asked: Asked) -> AnswerShape:
        tokenizer, chances = called.model.writer.tokenizer, fields.top is not None
        if not isinstance(fields, CompletionFields):
            return ChatShape(identity, called.name, tokenizer, chances, asked.form, asked.tools)
        echo = []
        if fields.echo:
            texts = [fields.prompt] if isinstance(fields.prompt, str) else fields.prompt
            for request, given in zip(
                asked.requests, texts if len(texts) == len(asked.requests) else [None], strict=True
            ):
                text = given if isinstance(given, str) else tokenizer.decode(request.prompt)
                echo += [text] * asked.samples
        return CompletionShape(identity, called.name, tokenizer, chances, echo)


async def _events(answers: ServedAnswers, shape: AnswerShape, arrived: float, told: bool) -> AsyncIterator[bytes]:
    """The chunks of an answer. told: whether the last tells what it took."""
    try:
        async for piece in answers.pieces():
            chunk = shape.chunk(piece)
            if chunk is not None:
                yield as_json({**chunk, "usage": None} if told else chunk)
    except Exception as error:
        yield as_json(_said(error).as_dict())
        return
    if told:
        yield as_json(shape.last(usage(answers, time.monotonic() - arrived)))
    yield b"[DONE]"


def _said(error: Exception) -> ApiError:
    """What a client is told of what went wrong while it was answered."""
    if isinstance(error, Stopped):
        return ApiError(503, "the server has closed before the answer was whole", code="draining", retry=5)
    return error if isinstance(error, ApiError) else internal()


def make_app(service: Service) -> ASGIApp:
    """The application; its engines run while it does."""

    @asynccontextmanager
    async def alive(app: Starlette) -> AsyncIterator[None]:
        try:
            await service.start()
            yield
        finally:
            await asyncio.get_running_loop().run_in_executor(None, service.stop)

    page = files("shoestring.serve").joinpath("page.html").read_bytes()

    async def health(request: Request) -> Response:
        failed = [model.name for model in service.models if not model.alive]
        status = "draining" if service.draining else "failed" if failed else "ok"
        notes = {model.name: list(model.notes) for model in service.models if model.notes}
        alive = {model.name: model.alive for model in service.models}
        body = as_json({"status": status, "models": alive, "notes": notes})
        return Response(body, 200 if status == "ok" else 503, media_type="application/json")

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(request: Request) -> Response:
        listed = [_described(called) for called in all_called(service.models)]
        return Response(as_json({"object": "list", "data": listed}), media_type="application/json")

    async def model(request: Request) -> Response:
        found = named(service.models, request.path_params["name"])
        return Response(as_json(_described(found)), media_type="application/json")

    async def chat_page(request: Request) -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": PAGE_POLICY})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {404: "there is nothing at this path", 405: "this path does not take that method"}
        wrong = ApiError(error.status_code, said.get(error.status_code, str(error.detail)), code="not_found")
        return Response(as_json(wrong.as_dict()), wrong.status, error.headers, "application/json")

    routes = [
        Route("/", chat_page),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", Completions(service, COMPLETION), methods=["POST"]),
        Route("/v1/chat/completions", Completions(service, CHAT), methods=["POST"]),
    ]
    paths = frozenset(route.path for route in routes)
    guard = Middleware(Guard, service.settings, service.metrics, lambda: service.draining, paths)
    return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: refused}, lifespan=alive)


def _described(called: Called) -> dict[str, Any]:
    model = called.model
    about, opened = model.writer.opened.about, model.writer.opened
    parent = {} if called.adapter is None else {"parent": model.name}
    return {
        "id": called.name,
        **parent,
        "object": "model",
        "created": model.created,
        "owned_by": "shoestring",
        "context": model.writer.context,
        "kind": about.kind,
        "digest": about.digest,
        "vocabulary": opened.model.about.vocabulary,
        "chat": about.chat_template is not None,
    }
