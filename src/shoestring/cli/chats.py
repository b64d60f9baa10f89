"""Chats in a file of JSON lines."""

from pathlib import Path

from shoestring.data.chat import Message
from shoestring.data.chat_files import MESSAGE, message_of
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json


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
            chats.append(tuple(message_of(each, where) for each in found))
            if not found:
                raise UsageError(f"{where} is a chat without messages")
        else:
            single.append(message_of(found, where))
    if chats and single:
        raise UsageError(f"{path} has whole chats and single messages: a line is a chat, or all lines are one")
    if not chats and not single:
        raise UsageError(f"{path} holds no messages: a line is like {MESSAGE}")
    return chats or [tuple(single)]
