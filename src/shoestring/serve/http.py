"""Requests in and answers out, whole or as a stream of events, over ASGI; a client that goes away ends its request."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from shoestring.serve.errors import ApiError


class Gone(Exception):
    """The client went away before its request was whole."""


async def read_body(scope: Scope, receive: Receive, most: int, seconds: float) -> bytes:
    """The body of a request. Raises: ApiError where it is longer than `most` bytes, or takes longer; Gone."""
    headers = {name.lower(): value for name, value in scope["headers"]}
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        raise ApiError(415, "a packed body is not taken: send it as it is", code="content_encoding")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > most:
        raise _too_long(most)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > most:
                    raise _too_long(most)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds:g} s", code="timeout") from None


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than {most} bytes", code="body_too_long")


async def until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless the client goes away before it is done: then it is cancelled. The body has been read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
    if not task.cancelled():
        task.result()


def as_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


async def send_whole(
    send: Send, status: int, body: bytes, kind: str = "application/json", headers: Mapping[str, str] | None = None
) -> None:
    """An answer in one piece."""
    found = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": _raw(found)})
    await send({"type": "http.response.body", "body": body})


async def send_events(send: Send, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
    """An answer as a stream of server-sent events, each the JSON of one."""
    found = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no", **(headers or {})}
    await send({"type": "http.response.start", "status": 200, "headers": _raw(found)})
    async for event in events:
        await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
