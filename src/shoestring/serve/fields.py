"""The fields of a request, as OpenAI names them, checked one by one; and those that are this server's own."""

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from annotated_types import Interval, Len
from pydantic import Field

from shoestring.serve.errors import ApiError, unreadable

SAMPLES = 64
"""Answers to one prompt, at most."""
PROMPTS = 64
"""Prompts of one request, at most."""
TOP = 20
"""Likeliest tokens that are told at each place, at most."""
STOPS = 16
"""Stop strings, at most."""

Id = Annotated[int, Interval(ge=0, lt=2**31)]
Limit = Annotated[int, Interval(ge=1, lt=2**31)]
Penalty = Annotated[float, Interval(ge=-2, le=2)]
Bias = Annotated[float, Interval(ge=-100, le=100)]
StopText = Annotated[str, Len(1, 256)]
Amount = Annotated[float, Interval(gt=0, le=1e30)]
Object = dict[str, Any]


class Fields(pydantic.BaseModel):
    """Named fields and no others; a number is no text and a text no number."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class BudgetFields(Fields):
    """What a request may spend.

    seconds: from its arrival on. tokens: read and written, of all its answers. flops: operations, of all its answers.
    least_tokens: how many tokens of each answer must be possible, or the request is refused; None: `max_tokens` where the request
        names it, else 1.
    """

    seconds: Amount | None = None
    tokens: Limit | None = None
    flops: Amount | None = None
    least_tokens: Limit | None = None


class StreamOptions(Fields):
    """include_usage: a last chunk tells what the request took."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class AnyText(Fields):
    """No constraint."""

    type: Literal["text"]


class JsonObject(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Fields):
    """A JSON schema, as OpenAI wraps it."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: Object = Field(alias="schema")


class JsonSchema(Fields):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Expression(Fields):
    """Text that a regular expression matches."""

    type: Literal["regex"]
    regex: str


Format = Annotated[AnyText | JsonObject | JsonSchema | Expression, Field(discriminator="type")]


class Common(Fields):
    """What both kinds of completions take. A field that is null has its default.

    max_tokens: of each answer. top_k, min_p, repetition_penalty, ignore_eos: as other open servers have them.
    budget: see `BudgetFields`.
    user ... service_tier: taken, and of no effect here.
    """

    model: str | None = None
    n: Annotated[int, Interval(ge=1, le=SAMPLES)] | None = None
    max_tokens: Limit | None = None
    temperature: Annotated[float, Interval(ge=0, le=100)] | None = None
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None
    top_k: Annotated[int, Interval(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Interval(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Interval(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Annotated[int, Interval(ge=0, lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Len(0, STOPS)] | None = Field(
        None, description=f"a text of 1 to 256 letters, or a list of at most {STOPS} of them"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Format | None = None
    ignore_eos: bool | None = None
    budget: BudgetFields | None = None
    user: str | None = None
    metadata: Object | None = None
    store: Literal[False] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Tokens of each answer, where the request says."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """Likeliest tokens to tell at each place; None: no log-probabilities."""
        raise NotImplementedError


class CompletionFields(Common):
    """`/v1/completions`: texts to go on from."""

    prompt: (
        str
        | Annotated[list[Id], Len(1)]
        | Annotated[list[str], Len(1, PROMPTS)]
        | Annotated[list[Annotated[list[Id], Len(1)]], Len(1, PROMPTS)]
    ) = Field(description=f"a text, a list of token ids, or a list of at most {PROMPTS} of either")
    echo: bool | None = None
    logprobs: Annotated[int, Interval(ge=0, le=TOP)] | None = None
    best_of: Annotated[int, Interval(ge=1, le=SAMPLES)] | None = None
    suffix: None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> "CompletionFields":
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of must be n: all answers that are written are given")
        if self.echo and self.logprobs is not None:
            raise ValueError("logprobs of an echoed prompt are not given: leave echo out")
        return self

    @property
    def top(self) -> int | None:
        return self.logprobs


class TextPart(Fields):
    """A part of a message that is text."""

    type: Literal["text"]
    text: str


class Function(Fields):
    """A function that a message called. arguments: JSON."""

    name: str
    arguments: str | Object


class ToolCall(Fields):
    """A call that an assistant's message made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class MessageFields(Fields):
    """One message of a chat."""

    role: Annotated[str, Len(1, 64)]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: list[Object] | None = None
    audio: None = None
    function_call: None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> "MessageFields":
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        return self


class ToolFields(Fields):
    """A function that the model may call."""

    type: Literal["function"]
    function: Object


class ChatFields(Common):
    """`/v1/chat/completions`: a chat to be answered."""

    messages: Annotated[list[MessageFields], Len(1, 4096)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Interval(ge=0, le=TOP)] | None = None
    tools: Annotated[list[ToolFields], Len(0, 128)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ChatFields":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


F = TypeVar("F", bound=Fields)


def read_fields(kind: type[F], body: bytes) -> F:
    """The fields of a body. Raises: ApiError, whatever it holds."""
    try:
        return kind.model_validate_json(body)
    except pydantic.ValidationError as error:
        described = {name: field.description for name, field in kind.model_fields.items()}
        raise unreadable(error, described) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deep", code="not_json") from None
