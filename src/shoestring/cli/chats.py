"""Chats in a file of JSON lines."""

from pathlib import Path

from shoestring.data.chat import Message
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json

EXAMPLE = '{"role": "user", "content": "Hello"}'


def read_chats(path: Path) -> list[tuple[Message, ...]]:
    """The chats of a file. A line is a chat, {"messages": [...]} or a list of messages; or all lines are the messages of one.

    Raises: UsageError for a file that cannot be read, or a line that is no such thing, saying which.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    chats, single = list[tuple[Message, ...]](), list[Message]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            found = parse_json(line)
        except NotJson as error:
            raise UsageError(f"{where} is not JSON: {error}") from None
        if isinstance(found, dict) and "messages" in found:
            found = found["messages"]
        if isinstance(found, list):
            chats.append(tuple(_message(each, where) for each in found))
            if not found:
                raise UsageError(f"{where} is a chat without messages")
        else:
            single.append(_message(found, where))
    if chats and single:
        raise UsageError(f"{path} has whole chats and single messages: a line is a chat, or all lines are one")
    if not chats and not single:
        raise UsageError(f"{path} holds no messages: a line is like {EXAMPLE}")
    return chats or [tuple(single)]


def _message(found: object, where: str) -> Message:
    """Raises: UsageError where it is none."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("role", "content")):
        raise UsageError(f"{where} has something that is no message: one is like {EXAMPLE}")
    try:
        found["content"].encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} has half of a surrogate pair, which is no text") from None
    return found
