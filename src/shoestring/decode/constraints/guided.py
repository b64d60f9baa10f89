"""Answers that follow a JSON schema or a regular expression, token by token, by llguidance."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from shoestring.errors import UsageError, first_line

INSTALL = "pip install 'shoestring[serve]'"

MOST_LETTERS = 1 << 16
"""Of a schema, or of a regular expression."""

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON with one space after each comma and colon, and no other: of white space without end, a small model makes a lot."""


class GuidingTokenizer(Protocol):
    """What is needed of a tokenizer."""

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """Of each id; none for special tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of text, with no special token."""
        ...


class Grammars:
    """Makes constraints for one model.

    tokens: its tokenizer.
    vocabulary: V, the number of its logits.
    ends: the ids that end an answer; a grammar that is at its end allows these alone.
    Raises: UsageError where llguidance is not installed.
    """

    def __init__(self, tokens: GuidingTokenizer, vocabulary: int, ends: Collection[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise UsageError(f"answers by a schema or an expression need llguidance: {INSTALL}") from None
        self._made: Any = llguidance
        table = [*tokens.token_bytes, *[b""] * vocabulary][:vocabulary]  # of ids beyond those in use, none
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Spelled(table, tokens.encode, ends)),
            n_vocab=vocabulary,
            eos_token=sorted(ends),
        )
        self._only_ends = torch.zeros(vocabulary, dtype=torch.bool)
        self._only_ends[sorted(ends)] = True

    def json(self) -> "Grammar":
        """Any JSON object."""
        return self.schema({"type": "object"})

    def schema(self, schema: Mapping[str, Any]) -> "Grammar":
        """JSON that a JSON schema allows. Raises: UsageError where it is none, or says what llguidance does not know."""
        _check_length(json.dumps(schema), "schema")
        try:
            grammar = self._made.LLMatcher.grammar_from_json_schema(dict(schema), overrides=COMPACT)
        except ValueError as error:
            raise UsageError(f"the schema cannot be used: {first_line(error)}") from None
        return self._grammar(grammar, "schema")

    def regex(self, expression: str) -> "Grammar":
        """Text that a regular expression matches as a whole. Raises: UsageError where it is none, or looks around."""
        _check_length(expression, "regular expression")
        return self._grammar(self._made.LLMatcher.grammar_from_regex(expression), "regular expression")

    def _grammar(self, grammar: str, what: str) -> "Grammar":
        limits = self._made.LLParserLimits(verbose_errors=False)
        matcher = self._made.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise UsageError(f"the {what} cannot be used: {_last_line(matcher.get_error())}")
        made = Grammar(matcher, self._only_ends, [])
        made.mask()  # some find only here that nothing can be written
        if made.failures:
            raise UsageError(f"the {what} cannot be used: {made.failures[0]}")
        return made


class _Spelled:
    """A tokenizer as llguidance wants it."""

    def __init__(self, table: Sequence[bytes], encode: Callable[[str], list[int]], ends: Collection[int]) -> None:
        # a special token is in the grammar's eyes a name, which no text holds
        self.tokens = [held or b"<%d>" % place for place, held in enumerate(table)]
        self.special_token_ids = [place for place, held in enumerate(table) if not held]
        self.eos_token_id, self.bos_token_id = min(ends), None
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode(errors="replace"))


class Grammar:
    """A place in a grammar: a `decode.sampling.Constraint`.

    matcher: llguidance's.
    ends: [V] bool, the tokens that end an answer.
    failures: what went wrong, of this and all its copies. An answer whose grammar has become too much for llguidance ends.
    """

    def __init__(self, matcher: Any, ends: Tensor, failures: list[str]) -> None:
        self._matcher, self._ends, self.failures = matcher, ends, failures

    def mask(self) -> Tensor | None:
        """As `Constraint.mask`."""
        if self._failed():
            return self._ends
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        return self._ends if self._failed() else allowed

    def take(self, token: int) -> None:
        """As `Constraint.take`."""
        self._matcher.consume_token(token)
        self._failed()

    def copy(self) -> "Grammar":
        """As `Constraint.copy`."""
        return Grammar(self._matcher.deep_copy(), self._ends, self.failures)

    def _failed(self) -> bool:
        if self._matcher.is_error() and not self.failures:
            self.failures.append(_last_line(self._matcher.get_error()))
        return bool(self._matcher.is_error())


def _check_length(text: str, what: str) -> None:
    if len(text) > MOST_LETTERS:
        raise UsageError(f"the {what} has {len(text):,} letters, and {MOST_LETTERS:,} are the most that is taken")


def _last_line(message: str) -> str:
    """What an error says in one line: of a drawing of the place, what is written below it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "it is not known why")
    return said.removeprefix("error: ")[:200]
