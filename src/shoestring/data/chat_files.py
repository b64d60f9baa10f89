"""Chats, and pairs of answers of which one was preferred, in files of JSON lines."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from shoestring.data.chat import Message
from shoestring.data.corpora.files import find_files
from shoestring.data.opening import opened, suffix
from shoestring.errors import UsageError
from shoestring.json_files import NotJson, parse_json

MESSAGE = '{"role": "user", "content": "Hello"}'
CHAT = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}'
PAIR = '{"prompt": "Hello", "chosen": "Hi.", "rejected": "What?"}'

QUESTIONS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
"""Keys under which a question and its answer stand, where a line has no messages."""


class Preference(NamedTuple):
    """Two answers to one chat. asked: the messages before them. chosen: the better one. rejected: the other."""

    asked: tuple[Message, ...]
    chosen: Message
    rejected: Message


def message_of(found: object, where: str) -> Message:
    """A message. Raises: UsageError where it is none."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("role", "content")):
        raise UsageError(f"{where} has something that is no message: one is like {MESSAGE}")
    try:
        (found["role"] + found["content"]).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} has half of a surrogate pair, which is no text") from None
    return found


def chat_lines(where: str) -> Iterator[tuple[str, tuple[Message, ...]]]:
    """(where it stands, the chat) of each line of the JSON lines files that a path, folder or glob names.

    A line is {"messages": [...]}, a list of messages, or a question and its answer: 'prompt' and 'completion', 'instruction'
    (with 'input') and 'output', 'question' and 'answer'.
    Raises: UsageError, with the file and the line, for one that is no such thing.
    """
    for place, row in json_rows(where):
        yield place, _chat(row, place)


def preference_lines(where: str) -> Iterator[tuple[str, Preference]]:
    """(where it stands, the pair) of each line: 'prompt' (text or messages), 'chosen' and 'rejected' (text, or messages of which
    the last is the answer). Raises: as `chat_lines`."""
    for place, row in json_rows(where):
        if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
            raise UsageError(f"{place} is no pair of answers: a line is like {PAIR}")
        asked, chosen, rejected = (_messages(row.get(key, []), role, place) for key, role in _PAIR)
        if len(chosen) > 1 or len(rejected) > 1:  # whole chats, alike up to the answer
            if chosen[:-1] != rejected[:-1] or asked not in ((), chosen[: len(asked)]):
                raise UsageError(f"{place}: the chosen and the rejected answer are not to the same chat")
            asked = chosen[:-1]
        if not asked:
            raise UsageError(f"{place} has two answers, and nothing that they answer: give 'prompt'")
        if not chosen or not rejected or any(one[-1]["role"] != "assistant" for one in (chosen, rejected)):
            raise UsageError(f"{place}: 'chosen' and 'rejected' must each end with a message of the assistant")
        yield place, Preference(asked, chosen[-1], rejected[-1])


_PAIR = (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))


def holds_chats(where: str) -> bool:
    """Whether the first line of a corpus's first file is a chat: a look, at one line."""
    try:
        files = find_files(where)
        first = next((path for path in files if suffix(path) in ("jsonl", "json")), None)
        if first is None:
            return False
        with opened(first) as file:
            row = parse_json(next((line for line in file if line.strip()), b"null"))
    except (UsageError, NotJson):
        return False
    if isinstance(row, list):
        return all(isinstance(each, dict) and "role" in each for each in row) and bool(row)
    return isinstance(row, dict) and ("messages" in row or any(set(keys) <= row.keys() for keys in QUESTIONS))


def json_rows(where: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, what it holds) of each line of the JSON lines files that a path, folder or glob names.

    Raises: UsageError, with the file and the line.
    """
    any_there = False
    for path in find_files(where):
        with opened(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    row = parse_json(line)
                except NotJson as error:
                    raise UsageError(f"{place} is not JSON: {error}") from None
                any_there = True
                yield place, row
    if not any_there:
        raise UsageError(f"{where} holds no line: one is like {CHAT}")


def _chat(row: Any, place: str) -> tuple[Message, ...]:
    if isinstance(row, dict) and "messages" not in row:
        for asked, answer in QUESTIONS:
            if {asked, answer} <= row.keys():
                given = [row[asked], row.get("input") or "", row[answer]]
                if not all(isinstance(one, str) for one in given):
                    raise UsageError(f"{place}: '{asked}' and '{answer}' must be text")
                question = "\n\n".join(one for one in given[:2] if one)
                return tuple(
                    message_of({"role": role, "content": content}, place)
                    for role, content in (("user", question), ("assistant", given[2]))
                )
        raise UsageError(f"{place} is no chat: a line is like {CHAT}")
    found = row["messages"] if isinstance(row, dict) else row
    if not isinstance(found, list):
        raise UsageError(f"{place} is no chat: a line is like {CHAT}")
    if not found:
        raise UsageError(f"{place} is a chat without messages")
    return tuple(message_of(each, place) for each in found)


def _messages(found: Any, role: str, place: str) -> tuple[Message, ...]:
    if isinstance(found, str):
        return (message_of({"role": role, "content": found}, place),)
    if not isinstance(found, list):
        raise UsageError(f"{place} is no pair of answers: a line is like {PAIR}")
    return tuple(message_of(each, place) for each in found)
