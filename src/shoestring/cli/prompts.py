"""What `shoestring generate` goes on from: texts and chats, of words, files and standard input, in tokens."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.base.writer import Writer
from shoestring.cli.chats import read_chats
from shoestring.data.chat import Message
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json


@dataclass(frozen=True)
class Prompt:
    """What to go on from.

    text: as it was given; of a chat, as the model's template writes it.
    ids: the tokens of it that the model reads.
    messages: of a chat.
    """

    text: str
    ids: list[int]
    messages: tuple[Message, ...] = ()


def chats_of(found: argparse.Namespace) -> list[tuple[Message, ...]]:
    """The chats that are to be answered; none where prompts are to be continued. Raises: UsageError."""
    if found.system is not None and not (found.chat or found.messages):
        raise UsageError("--system is a message of a chat: give --chat, or --messages PATH")
    if not (found.chat or found.messages):
        return []
    if found.keep_last:
        raise UsageError("--keep-last would cut a chat in the middle of its template: leave it out")
    chats = [chat for path in found.messages for chat in read_chats(path)]
    if found.prompts or found.file or not found.messages:
        chats += [({"role": "user", "content": text},) for text in texts_of(found.prompts, found.file)]
    before: tuple[Message, ...] = () if found.system is None else ({"role": "system", "content": found.system},)
    return [(*before, *chat) for chat in chats]


def question(messages: tuple[Message, ...], writer: Writer) -> Prompt:
    """A chat that is to be answered, in tokens. Raises: UsageError."""
    ids = writer.chat_ids(messages)
    if len(ids) > writer.context:
        raise UsageError(f"the chat has {len(ids)} tokens, and this model reads {writer.context}: shorten it")
    return Prompt(writer.chat.text(messages), ids, messages)


def schema_of(path: Path) -> dict[str, Any]:
    """The JSON schema of a file. Raises: UsageError."""
    try:
        schema = parse_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except NotJson as error:
        raise UsageError(f"{path}, line {error.line}, is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{path} is no JSON schema: one is an object")
    return schema


def texts_of(given: Sequence[str], files: Sequence[Path]) -> list[str]:
    """The prompts: those of the command line, then those of files. Raises: UsageError."""
    if given.count("-") > 1:
        raise UsageError("'-' is given twice, and standard input is read once")
    if not given and not files:
        if sys.stdin.isatty():
            raise UsageError("no prompt: give PROMPT or --file PATH, or send text to standard input")
        given = ["-"]
    texts = [_standard_input() if each == "-" else argument(each) for each in given]
    for path in files:
        try:
            texts.append(_decoded(path.read_bytes(), str(path)))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if not all(texts):
        raise UsageError("the prompt is empty: give some text to go on from")
    return texts


def _standard_input() -> str:
    return _decoded(sys.stdin.buffer.read(), "standard input")


def argument(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not UTF-8: character {error.start + 1} of it is no text") from None
    return text


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}, line {line}; "
            "convert it first, as by: iconv -f latin1 -t utf-8"
        ) from None


def prompt_of(text: str, writer: Writer, tokens: int, *, keep_last: bool) -> Prompt:
    """The prompt in tokens. Raises: UsageError where it is longer than the context, unless its last tokens will do."""
    ids, context = writer.text_ids(text), writer.context
    if len(ids) <= context:
        return Prompt(text, ids)
    if not keep_last:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, and this model reads {context}: "
            "shorten it, or give --keep-last to go on from its last tokens"
        )
    kept = context - min(tokens, context // 2)
    print(
        f"(the prompt has {len(ids)} tokens, and this model reads {context}: the last {kept} are kept)", file=sys.stderr
    )
    return Prompt(text, ids[-kept:])
