"""Return-conditioned chats: what an answer came to is written before it, so that an answer of that kind can be asked for later.

Upside-down reinforcement learning (arXiv:1912.02875): the outcome is an input, and plain likelihood is what is trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shoestring.data.chat import Message
from shoestring.method import find


def command(wanted: Mapping[str, str]) -> str:
    """As it is written: '[length: 20] [relevance: high]'."""
    return " ".join(f"[{name}: {value}]" for name, value in wanted.items())


def with_command(messages: Sequence[Message], wanted: Mapping[str, str]) -> tuple[Message, ...]:
    """A chat whose last message of the user ends with what is wanted of the answer to it; as it is, where nothing is."""
    place = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
    if place is None or not wanted:
        return tuple(messages)
    said = {**messages[place], "content": f"{messages[place]['content']}\n{command(wanted)}"}
    return (*messages[:place], said, *messages[place + 1 :])


def conditioned(messages: Sequence[Message], names: Sequence[str]) -> tuple[Message, ...]:
    """A chat in which every question ends with what its answer came to.

    names: of methods of the kind 'return'. Raises: UsageError for an unknown one.
    """
    measures: dict[str, Any] = {name: find("data", name, "return").target for name in names}
    made = list[Message]()
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and place and messages[place - 1]["role"] == "user":
            came_to = {name: str(measure(messages[:place], message)) for name, measure in measures.items()}
            made = list(with_command(made, came_to))
        made.append(message)
    return tuple(made)
