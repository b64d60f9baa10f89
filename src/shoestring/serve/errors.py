"""What a client is told when its request is not answered, in the shape that OpenAI's clients know."""

import math
from collections.abc import Mapping
from typing import Any

import pydantic

from shoestring.errors import did_you_mean, printable

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""The word for each status; of the others below 500, 'invalid_request_error', and from 500 on 'server_error'."""


class ApiError(Exception):
    """A request that is not answered.

    status: of HTTP. message: what is wrong and what to do, one line.
    param: the field that is wrong. code: a word that programs can tell it by.
    retry: seconds after which the same request may be answered; None: it is no matter of time.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, printable(message), param, code, retry

    def as_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Beside those that every answer has."""
        found = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry is not None:
            found["retry-after"] = str(max(1, math.ceil(min(self.retry, 86400))))
        if self.code == "budget_unreachable":
            found["x-should-retry"] = "false"
        return found


def internal() -> ApiError:
    """Something went wrong that is no fault of the client. What it was stands in the server's own log."""
    return ApiError(500, "the server failed at this request; its log says why", code="internal_error")


def unreadable(error: pydantic.ValidationError, known: Mapping[str, str | None]) -> ApiError:
    """The first thing that is wrong with the fields of a request.

    known: the names of fields; of those that may be of several kinds, with these in words.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    where = [part for part in first["loc"] if isinstance(part, str | int)]
    name = printable(str(where[0]))[:60] if where else None
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="not_json")
    if first["type"] == "extra_forbidden":
        inner = printable(str(where[-1]))[:60]
        hint = did_you_mean(inner, known) if len(where) == 1 else f"it stands in '{name}'"
        return ApiError(400, f"unknown field '{inner}': {hint}", param=name, code="unknown_field")
    if first["type"] == "missing":
        place = ".".join(str(part) for part in where if not str(part)[:1].isupper())
        return ApiError(400, f"'{place[:80]}' is missing", param=name, code="missing_field")
    if name and known.get(name):
        return ApiError(400, f"{name} must be {known[name]}", param=name, code="wrong_value")
    said = first["msg"].removeprefix("Value error, ")
    return ApiError(
        400, f"{name}: {said[:1].lower()}{said[1:300]}" if name else said[:300], param=name, code="wrong_value"
    )
