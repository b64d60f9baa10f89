"""Chats as the text that a model was tuned on, by its makers' own template.

`shoestring.data.chat_template` makes text of a template; here the text becomes tokens, and the end of an answer is found.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

from shoestring.data.chat_template import apply_chat, check_template
from shoestring.errors import ShoestringError, UsageError

Message = Mapping[str, Any]
"""'role' and 'content', as templates know them: {"role": "user", "content": "Hello"}."""

Tool = Mapping[str, Any]
"""A function that the model may call, as templates know it: {"type": "function", "function": {"name": ..., ...}}."""

NEVER = "\ufdd0"
"""A character that no text holds (Unicode has it for a program's own use)."""

ANSWER = "An answer."
"""What is put in an assistant's mouth to see what follows an answer."""


class Learnt(NamedTuple):
    """A chat to learn from. ids: its tokens. counted: of each, whether it is to be learnt: those of the answers. Above 1: of which
    further kind it is, where a document has several."""

    ids: list[int]
    counted: Sequence[int]


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


class Chat:
    """A template with the tokenizer that reads what it makes.

    template: in Jinja.
    Raises: UsageError where it is no template.
    """

    def __init__(self, template: str, tokenizer: Tokens) -> None:
        check_template(template)
        self._template, self._tokenizer = template, tokenizer
        written = {tokenizer.token(place): place for place, held in enumerate(tokenizer.token_bytes) if not held}
        self._special = {
            text: place for text, place in written.items() if text and [place] == tokenizer.encode_special(text)
        }

    def text(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None, *, answer: bool = True) -> str:
        """The chat as text, special tokens written out.

        tools: that the model may call, where its template knows of any.
        answer: with the beginning of an assistant's message.
        Raises: UsageError where the template refuses the messages or fails on them.
        """
        begin, end = self._tokenizer.begin, self._tokenizer.end
        said = {
            "bos_token": "" if begin is None else self._tokenizer.token(begin),
            "eos_token": self._tokenizer.token(end),
        }
        return apply_chat(self._template, messages, answer=answer, tokens=said, tools=tools)

    def ids(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> list[int]:
        """The tokens of a chat, up to where the assistant is to go on.

        What a message or a tool says is never a special token, though it be written like one. Raises: as `text` does.
        """
        return self._encoded(
            self.text(self._marked(list(messages)), self._marked(None if tools is None else list(tools)))
        )

    def learnt(self, messages: Sequence[Message]) -> Learnt:
        """The tokens of a whole chat, and which of them are answers: what an assistant says, and the token that ends it.

        What is before an answer is cut into tokens by itself, as it is when the answer is to be written. Where the chat ends
        with the end token, it is left out: whoever joins documents puts it there.
        Raises: UsageError where there is no answer, the template refuses the messages, or it writes what is before an answer in
        another way once the answer is there.
        """
        marked, done = [self._marked(message) for message in messages], ""
        ids, counted = list[int](), list[bool]()
        answers = [place for place, message in enumerate(messages) if message.get("role") == "assistant"]
        if not answers:
            raise UsageError("there is no message of the assistant in it, from which to learn")
        if answers[0] == 0:
            raise UsageError("it begins with an answer: a message of the user or the system must come before")
        for place in answers:
            before, after = self.text(marked[:place]), self.text(marked[: place + 1], answer=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise UsageError("its template writes earlier messages in another way once there is an answer to them")
            asked, said = self._encoded(before[len(done) :]), self._encoded(after[len(before) :])
            last = max((i for i, token in enumerate(said) if token in self._ends), default=len(said) - 1)
            ids += asked + said
            counted += [False] * len(asked) + [i <= last for i in range(len(said))]
            done = after
        end = self._tokenizer.end
        if end in ids:  # what follows the last answer's end is the template's line feed
            last = len(ids) - 1 - ids[::-1].index(end)
            if not any(counted[last + 1 :]):
                ids, counted = ids[:last], counted[:last]
        return Learnt(ids, counted)

    @cached_property
    def _ends(self) -> frozenset[int]:
        return self.ends()

    def _encoded(self, text: str) -> list[int]:
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

    def _marked(self, value: Any) -> Any:
        """A value of JSON in which nothing is written like a special token."""
        if isinstance(value, str):
            plain = value.replace(NEVER, "\ufffd")
            return (
                self._pattern.sub(lambda found: found[0][0] + NEVER + found[0][1:], plain) if self._special else plain
            )
        if isinstance(value, Mapping):
            return {self._marked(key): self._marked(held) for key, held in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(held) for held in value]
        return value
