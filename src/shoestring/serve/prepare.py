"""From the fields of a request to what an engine is asked. This takes its time, and runs beside the event loop."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode import Request, Sampling
from shoestring.decode.sampling import Constraint
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json
from shoestring.serve.answers import Asked
from shoestring.serve.errors import ApiError
from shoestring.serve.fields import (
    AnyText,
    ChatFields,
    Common,
    CompletionFields,
    Expression,
    JsonObject,
    MessageFields,
)
from shoestring.serve.served_model import ServedModel
from shoestring.serve.tool_calls import MarkedStream, format_of, marks_of

COMPLETION_TOKENS = 16
"""Of an answer to `/v1/completions`, where the request does not say: OpenAI's."""


def prepare_completion(fields: CompletionFields, model: ServedModel, answer: int) -> Asked:
    """The texts to go on from. answer: tokens of an answer to a chat, which matters not here. Raises: ApiError."""
    given = fields.prompt
    if isinstance(given, str):
        prompts = [model.writer.text_ids(given)]
    elif all(isinstance(each, int) for each in given):
        prompts = [list(given)]  # type: ignore[arg-type]
    else:
        prompts = [model.writer.text_ids(each) if isinstance(each, str) else list(each) for each in given]  # type: ignore[arg-type]
    return _asked(fields, model, prompts, model.writer.ends, fields.limit or COMPLETION_TOKENS)


def prepare_chat(fields: ChatFields, model: ServedModel, answer: int) -> Asked:
    """The chat to be answered. answer: its tokens, where the request does not say. Raises: ApiError."""
    if model.writer.opened.about.chat_template is None:
        raise ApiError(
            400, f"model '{model.name}' has no chat template, as models that were tuned to answer have: use /v1/completions",
            param="model", code="no_chat_template",
        )  # fmt: skip
    messages = [_message(each) for each in fields.messages]
    tools = [tool.model_dump() for tool in fields.tools or ()] if fields.tool_choice != "none" else []
    try:
        ids = model.writer.chat_ids(messages, tools or None)
        ends = model.writer.answer_ends
    except UsageError as error:
        raise ApiError(400, f"messages: {error}", param="messages", code="wrong_value") from None
    asked = _asked(fields, model, [ids], ends, fields.limit or answer)
    names = frozenset(str(tool["function"].get("name", "")) for tool in tools)
    if not names:
        return asked
    form = format_of(model.writer.opened.about.chat_template)
    if form is None:
        model.note(
            "its chat template shows no known way to write calls of tools: answers to requests with tools are text"
        )
        return asked
    tokenizer = model.writer.tokenizer
    marks = marks_of(form, tokenizer)
    stream = partial(_marked, tokenizer, marks) if marks else tokenizer.stream
    return replace(asked, stream=stream, form=form, tools=names)


def _marked(tokenizer: TextTokenizer, marks: dict[int, str]) -> MarkedStream:
    return MarkedStream(tokenizer.stream(), marks)


def _message(fields: MessageFields) -> dict[str, Any]:
    """A message as templates know it."""
    content = fields.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    found: dict[str, Any] = {"role": fields.role, "content": content or ""}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(fields, name) is not None:
            found[name] = getattr(fields, name)
    if fields.tool_calls:
        found["tool_calls"] = [
            {**call.model_dump(exclude_none=True), "function": _called(call.function.name, call.function.arguments)}
            for call in fields.tool_calls
        ]
    return found


def _called(name: str, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    """A call, its arguments as an object where they are one: templates write them out as JSON."""
    if isinstance(arguments, str):
        try:
            found = parse_json(arguments.encode())
        except NotJson:
            found = arguments
        return {"name": name, "arguments": found if isinstance(found, dict) else arguments}
    return {"name": name, "arguments": dict(arguments)}


def _asked(fields: Common, model: ServedModel, prompts: list[list[int]], ends: frozenset[int], limit: int) -> Asked:
    for ids in prompts:
        model.check(ids)
    sampling = _sampling(fields, model)
    constraint = _constraint(fields, model, ends)
    if fields.ignore_eos:
        if constraint is not None:
            raise ApiError(400, "ignore_eos: an answer with a response_format ends where that does", param="ignore_eos")
        ends = frozenset()
    context = model.writer.context
    requests = [
        Request(
            tuple(ids),
            sampling,
            max(1, min(limit, context - len(ids) + 1)),
            ends,
            fields.n or 1,
            fields.top,
            constraint,
        )
        for ids in prompts
    ]
    return Asked(requests, fields.stops, model.writer.tokenizer.stream)


def _sampling(fields: Common, model: ServedModel) -> Sampling:
    bias = dict[int, float]()
    for key, value in (fields.logit_bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < model.vocabulary):
            raise ApiError(
                400, f"logit_bias: '{key[:20]}' is no token: they are numbers below {model.vocabulary}", param="logit_bias",
                code="wrong_value",
            )  # fmt: skip
        bias[int(key)] = value
    given = {
        name: getattr(fields, name)
        for name in ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        if getattr(fields, name) is not None
    }
    seed = secrets.randbits(63) if fields.seed is None else fields.seed
    temperature = 1.0 if fields.temperature is None else fields.temperature
    return Sampling(temperature=temperature, seed=seed, logit_bias=bias, **given)


def _constraint(fields: Common, model: ServedModel, ends: frozenset[int]) -> Constraint | None:
    form = fields.response_format
    if form is None or isinstance(form, AnyText):
        return None
    try:
        grammars = model.grammars(ends)
        if isinstance(form, JsonObject):
            return grammars.json()
        if isinstance(form, Expression):
            return grammars.regex(form.regex)
        return grammars.schema(form.json_schema.schema_)
    except UsageError as error:
        raise ApiError(400, f"response_format: {error}", param="response_format", code="wrong_value") from None
