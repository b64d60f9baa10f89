"""Chats as the text that a model was tuned on, by its makers' own template.

A template is Jinja, and comes from a file that nobody here wrote. It is rendered in Jinja's sandbox, where it can read the messages
and build text. It has what `transformers` gives to templates beside: `raise_exception`, `strftime_now`, the filter `tojson`, the
tag `generation`, and `break` and `continue`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, Protocol

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoestring.errors import ShoestringError, UsageError, first_line

Message = Mapping[str, Any]
"""'role' and 'content', as templates know them: {"role": "user", "content": "Hello"}."""

LONGEST = 1 << 24
"""Characters that a template may make of a chat."""

NEVER = "\ufdd0"
"""A character that no text holds (Unicode has it for a program's own use)."""

ANSWER = "An answer."
"""What is put in an assistant's mouth to see what follows an answer."""


class Tokens(Protocol):
    """What is needed of a tokenizer."""

    end: int
    begin: int | None
    vocabulary: int

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """Of each id; none for special tokens."""
        ...

    def token(self, place: int) -> str:
        """How an id is written."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of text, with no special token."""
        ...

    def encode_special(self, text: str) -> list[int]:
        """Ids of text in which special tokens are written out."""
        ...


class _Generation(Extension):
    """`{% generation %}`: marks an assistant's words for whoever trains on them. Here it is its contents."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, without products that take all memory or time."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)]
        if not all(isinstance(side, int | float) and abs(side) <= LONGEST for side in sizes):
            raise ValueError("a product of numbers too large")
        if operator == "*" and sizes != [left, right] and sizes[0] * sizes[1] > LONGEST:
            raise ValueError("a text repeated to be too long")
        if operator == "**" and abs(right) > 64:
            raise ValueError("a power too large")
        return super().call_binop(context, operator, left, right)


class Chat:
    """A template with the tokenizer that reads what it makes.

    template: in Jinja.
    Raises: ShoestringError where it is no template.
    """

    def __init__(self, template: str, tokenizer: Tokens) -> None:
        settings = {"trim_blocks": True, "lstrip_blocks": True}
        environment = _Sandbox(extensions=[_Generation, "jinja2.ext.loopcontrols"], **settings)
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._tokenizer = tokenizer
        try:
            self._template = environment.from_string(template)
        except Exception as error:  # a parser has many ways to fail on text that was made to make it fail
            raise ShoestringError(f"the chat template cannot be read: {first_line(error)}") from None
        written = {tokenizer.token(place): place for place, held in enumerate(tokenizer.token_bytes) if not held}
        self._special = {
            text: place for text, place in written.items() if text and [place] == tokenizer.encode_special(text)
        }

    def text(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The chat as text, special tokens written out. answer: with the beginning of an assistant's message.

        Raises: UsageError where the template refuses the messages, ShoestringError where it fails.
        """
        begin, end = self._tokenizer.begin, self._tokenizer.end
        said = {
            "bos_token": "" if begin is None else self._tokenizer.token(begin),
            "eos_token": self._tokenizer.token(end),
        }
        made, length = list[str](), 0
        try:
            for piece in self._template.generate(
                messages=[dict(message) for message in messages], add_generation_prompt=answer, tools=None, **said
            ):
                made.append(piece)
                length += len(piece)
                if length > LONGEST:
                    raise ShoestringError(f"the chat template makes more than {LONGEST:,} characters of this chat")
        except _Refused as error:
            raise UsageError(f"the model's chat template refuses this chat: {first_line(error)}") from None
        except ShoestringError:
            raise
        except Exception as error:
            raise ShoestringError(f"the model's chat template fails on this chat: {first_line(error)}") from None
        return "".join(made)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat, up to where the assistant is to go on.

        What a message says is never a special token, though it be written like one. Raises: as `text` does.
        """
        marked = [self._marked(message) for message in messages]
        text = self.text(marked)
        if NEVER not in text:
            return self._tokenizer.encode_special(text)
        found = list[int]()
        for piece in self._pattern.split(text):
            if piece in self._special:
                found.append(self._special[piece])
            elif piece:
                found += self._tokenizer.encode(piece.replace(NEVER, ""))
        return found

    def ends(self) -> frozenset[int]:
        """The tokens that end an answer: the tokenizer's end token, and the special one that the template writes after one."""
        found = {self._tokenizer.end}
        question = {"role": "user", "content": "A question."}
        try:
            after = self.text([question, {"role": "assistant", "content": ANSWER}], answer=False).rpartition(ANSWER)
        except ShoestringError:
            return frozenset(found)  # a template that takes no answers writes nothing after one
        first = self._pattern.search(after[2]) if after[1] and self._special else None
        if first and not after[2][: first.start()].strip():
            found.add(self._special[first[0]])
        return frozenset(found)

    @property
    def _pattern(self) -> re.Pattern[str]:
        """The special tokens in text, the longest first; marked ones are none."""
        listed = sorted(self._special, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, listed)) + f")(?!{NEVER})")

    def _marked(self, message: Message) -> Message:
        """A message in which nothing is written like a special token."""
        content = message.get("content")
        if not isinstance(content, str):
            return message
        content = content.replace(NEVER, "\ufffd")
        if self._special:
            content = self._pattern.sub(lambda found: found[0][0] + NEVER + found[0][1:], content)
        return {**message, "content": content}


class _Refused(TemplateError):
    """The template says that it will not have these messages."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(str(message))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """Jinja's own escapes what HTML has a use for."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)
