"""What every request passes before it is heard: is the server still open, is it called by its name, has the client a key. And
what every failure becomes: one answer in OpenAI's shape."""

import logging
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoestring.serve.errors import ApiError, internal
from shoestring.serve.http import Gone, as_json, send_whole
from shoestring.serve.metrics import Metrics
from shoestring.serve.settings import Settings

log = logging.getLogger("shoestring.serve")

OPEN = ("/", "/health")
"""Paths that need no key."""

SAFE = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every answer."""


class Guard:
    """Stands before the application.

    draining: whether the server takes nothing new. paths: that there are, for the counts.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, draining: Callable[[], bool], paths: frozenset[str]
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._draining, self._paths = draining, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                had = {name.lower() for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in SAFE.items() if name.encode() not in had]
                if self._draining():
                    more.append((b"connection", b"close"))
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, counted)
        except Gone:
            status = status or 499
        except Exception as error:
            if not isinstance(error, ApiError):
                log.exception("%s %s failed", scope["method"], scope["path"])
                error = internal()
            if error.status in (429, 503):
                self._metrics.refused(error.code or "")
            if not status:
                await send_whole(counted, error.status, as_json(error.as_dict()), headers=error.headers)
        finally:
            path = scope["path"]
            self._metrics.answered(path if path in self._paths else "other", status or 499)

    def _check(self, scope: Scope) -> None:
        """Raises: ApiError where the request is not to be heard."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._settings.hosts is not None and _name(host) not in self._settings.hosts:
            raise ApiError(403, "this server is not known by that name: call it by its address", code="unknown_host")
        if scope["path"] in OPEN:
            return
        if self._draining() and scope["path"] != "/metrics":
            raise ApiError(503, "the server is closing: ask again soon, or another", code="draining", retry=5)
        if not self._settings.keys:
            origin = headers.get(b"origin", b"").decode("latin-1").lower()
            if origin and origin.partition("://")[2] != host:
                raise ApiError(403, "pages of other servers may not use this one without a key", code="foreign_origin")
            return
        kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or key.strip() not in self._settings.keys:
            raise ApiError(401, "a key is needed, as: Authorization: Bearer KEY", code="invalid_api_key")


def _name(host: str) -> str:
    """A host without its port."""
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
