"""Calls of tools in an answer, as the model's chat template writes them, told apart from what it says."""

import json
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode.answer_text import Detokenizer
from shoestring.json_files import NotJson, parse_json

MOST_LETTERS = 1 << 16
"""Of what may become a call, held back at most; what is longer is text."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes calls: JSON between two marks.

    opening: before a call, or several. closing: after it; '' where the answer ends with it.
    bare: whether a whole answer that is JSON is a call, too, without the mark.
    """

    opening: str
    closing: str
    bare: bool = False


# by what stands in the chat template; the first that does
FORMATS = {
    "<tool_call>": ToolFormat("<tool_call>", "</tool_call>"),  # Hermes, Qwen, SmolLM
    "[TOOL_CALLS]": ToolFormat("[TOOL_CALLS]", ""),  # Mistral
    "<|python_tag|>": ToolFormat("<|python_tag|>", "", bare=True),  # Llama 3
}


def format_of(template: str | None) -> ToolFormat | None:
    """How a model with this chat template writes calls; None where nobody knows."""
    return next((form for mark, form in FORMATS.items() if mark in (template or "")), None)


@dataclass(frozen=True)
class Call:
    """A call. arguments: JSON. identity: by which its result is given back."""

    name: str
    arguments: str
    identity: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def as_dict(self, place: int | None = None) -> dict[str, Any]:
        """As OpenAI has it. place: among the calls of an answer, in a stream."""
        made = {"id": self.identity, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return made if place is None else {"index": place, **made}


def calls_of(text: str, names: Collection[str]) -> list[Call] | None:
    """The calls that a JSON text makes; None where it makes none, or one of a function that is not in `names`.

    An object with 'name' and 'arguments' ('parameters' in some families), or a list of such; several may follow one another, with
    ';' or white space between.
    """
    found = list[Call]()
    for part in _values(text):
        for one in part if isinstance(part, list) else [part]:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str) or one["name"] not in names:
                return None
            arguments = one.get("arguments", one.get("parameters", {}))
            if isinstance(arguments, str):
                try:
                    arguments = parse_json(arguments.encode())
                except NotJson:
                    return None
            if not isinstance(arguments, dict):
                return None
            found.append(Call(one["name"], json.dumps(arguments)))  # in ASCII: half a surrogate pair would be no UTF-8
    return found or None


def _values(text: str) -> Sequence[Any]:
    """The JSON values that follow one another; none where there is anything else."""
    found, decoder, place = list[Any](), json.JSONDecoder(), 0
    while place < len(text):
        if text[place] in " \t\r\n;":
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return ()
        found.append(value)
    return found


class ToolReader:
    """Takes the text of one answer piece by piece, and gives what is said and what is called.

    form: of the model. names: of the functions that may be called; what calls another stays text.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self._form, self._names = form, names
        self._held = ""
        self._inside = self._said = False
        self.calls: list[Call] = []
        """All so far."""

    def push(self, text: str) -> tuple[str, list[Call]]:
        """(what is said for certain, the calls that are whole) with this new text."""
        self._held += text
        said, called = list[str](), list[Call]()
        while self._held:
            if not self._inside:
                before, mark, after = self._held.partition(self._form.opening)
                if mark:
                    said.append(before)
                    self._held, self._inside = after, True
                    continue
                keep = len(self._held) if self._may_be_bare(said) else _begun(self._held, self._form.opening)
                said.append(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                break
            inside, mark, after = (
                self._held.partition(self._form.closing) if self._form.closing else (self._held, "", "")
            )
            if not mark:
                if len(self._held) > MOST_LETTERS:
                    said.append(self._form.opening + self._held)
                    self._held, self._inside = "", False
                break
            made = calls_of(inside, self._names)
            if made is None:
                said.append(self._form.opening + inside + mark)
            called += made or []
            self._held, self._inside = after, False
        return self._told(said, called)

    def finish(self) -> tuple[str, list[Call]]:
        """What is left when no more comes: of a call that was not closed, the call where it is whole, else its text."""
        held, self._held = self._held, ""
        inside, self._inside = self._inside, False
        bare = self._form.bare and not self._said
        made = calls_of(held, self._names) if held and (inside or bare) else None
        if made is None:
            return self._told([self._form.opening * inside + held], [])
        return self._told([], made)

    def _told(self, said: Sequence[str], called: list[Call]) -> tuple[str, list[Call]]:
        self.calls += called
        text = "".join(said)
        if self.calls and not text.strip():
            text = ""  # the line feeds around calls
        self._said = self._said or bool(text)
        return text, called

    def _may_be_bare(self, said: Sequence[str]) -> bool:
        """Whether all of the answer so far may be a call without its mark."""
        if not self._form.bare or self._said or any(said) or len(self._held) > MOST_LETTERS:
            return False
        return self._held.lstrip()[:1] in ("", "{", "[")


def _begun(text: str, mark: str) -> int:
    """Letters at the end of a text that may be the beginning of a mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


class MarkedStream:
    """A stream in which the marks of a format are written out, where the tokenizer has a special token for one."""

    def __init__(self, stream: Detokenizer, marks: dict[int, str]) -> None:
        self._stream, self._marks = stream, marks

    def push(self, token: int) -> str:
        """As `Detokenizer.push`."""
        mark = self._marks.get(token)
        return self._stream.push(token) if mark is None else self._stream.finish() + mark

    def finish(self) -> str:
        """As `Detokenizer.finish`."""
        return self._stream.finish()


def marks_of(form: ToolFormat, tokenizer: TextTokenizer) -> dict[int, str]:
    """The special tokens that are marks of a format, which a text would lack."""
    found = {}
    for mark in filter(None, (form.opening, form.closing)):
        ids = tokenizer.encode_special(mark)
        if len(ids) == 1 and not tokenizer.token_bytes[ids[0]]:
            found[ids[0]] = mark
    return found
