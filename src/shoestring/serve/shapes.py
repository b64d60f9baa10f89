"""ServedAnswers in the shapes that OpenAI's clients read, whole or in chunks; and what they cost."""

import math
import time
from collections.abc import Sequence
from typing import Any

from shoestring.budget.charge import NOTHING
from shoestring.data.tokenizer import TextTokenizer
from shoestring.decode.sampling import LogProbability
from shoestring.serve.answers import AnswerEnd, AnswerPiece, ServedAnswers
from shoestring.serve.tool_calls import ToolFormat, ToolReader

NEVER = -9999.0
"""What stands for the logarithm of a probability of 0."""


def usage(answers: ServedAnswers, seconds: float) -> dict[str, Any]:
    """What all answers of a request took. seconds: from its beginning to its end."""
    spent = [ended.spent for ended in answers.ended]
    charge = sum((each.charge for each in spent), NOTHING)
    causes = dict[str, float]()
    for each in spent:
        for cause, amount in each.seconds.items():
            causes[cause] = round(causes.get(cause, 0.0) + amount, 6)
    firsts = [each.first for each in spent if each.first is not None]
    prompt, written = answers.asked.prompt_tokens, sum(sum(each.written) for each in answers.progress)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": min(charge.reused, prompt)},
        "cost": {
            "read": charge.read,
            "reused": charge.reused,
            "written": charge.written,
            "wasted": charge.wasted,
            "flops": charge.flops,
            "moved_bytes": charge.moved,
            "seconds": causes,
            "elapsed_seconds": round(seconds, 6),
            "first_token_seconds": round(min(firsts), 6) if firsts else None,
        },
    }


class AnswerShape:
    """How the answers to one request are told.

    identity: of the request. model: its name. tokenizer: for the names of tokens.
    chances: whether log-probabilities were asked for.
    """

    whole_kind = chunk_kind = ""

    def __init__(self, identity: str, model: str, tokenizer: TextTokenizer, chances: bool) -> None:
        self._identity, self._model, self._tokenizer, self._chances = identity, model, tokenizer, chances
        self._created = int(time.time())

    def whole(self, pieces: Sequence[AnswerPiece], took: dict[str, Any]) -> dict[str, Any]:
        """The answer in one piece. pieces: all of them, in the order in which they came."""
        choices = []
        for answer in sorted({piece.answer for piece in pieces}):
            own = [piece for piece in pieces if piece.answer == answer]
            ended = own[-1].ended
            text, chances = "".join(piece.text for piece in own), [one for piece in own for one in piece.chances]
            choices.append({**self._choice(answer, text, chances), **self._end(answer, ended)})
        return {**self._head(self.whole_kind), "choices": choices, "usage": took}

    def chunk(self, piece: AnswerPiece) -> dict[str, Any] | None:
        """A piece; None where there is nothing to tell."""
        if not (piece.text or piece.chances or piece.ended):
            return None
        return {
            **self._head(self.chunk_kind),
            "choices": [{**self._delta(piece), **self._end(piece.answer, piece.ended)}],
        }

    def last(self, took: dict[str, Any]) -> dict[str, Any]:
        """The chunk that tells what it took."""
        return {**self._head(self.chunk_kind), "choices": [], "usage": took}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._identity, "object": kind, "created": self._created, "model": self._model}

    def _choice(self, answer: int, text: str, chances: Sequence[LogProbability]) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, piece: AnswerPiece) -> dict[str, Any]:
        raise NotImplementedError

    def _end(self, answer: int, ended: AnswerEnd | None) -> dict[str, Any]:
        if ended is None:
            return {"finish_reason": None}
        return {"finish_reason": ended.reason, "finish_detail": ended.detail}

    def _bytes(self, token: int) -> bytes:
        known = self._tokenizer.token_bytes
        return known[token] if token < len(known) else b""

    def _name(self, token: int) -> str:
        """A token as text; of part of a character its bytes, as OpenAI writes them; of a special one how it is written."""
        held = self._bytes(token)
        try:
            text = held.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in held)
        if text:
            return text
        return self._tokenizer.token(token) if token < len(self._tokenizer.token_bytes) else f"<{token}>"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else NEVER


class ChatShape(AnswerShape):
    """Of `/v1/chat/completions`."""

    whole_kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(
        self,
        identity: str,
        model: str,
        tokenizer: TextTokenizer,
        chances: bool,
        form: ToolFormat | None = None,
        tools: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(identity, model, tokenizer, chances)
        self._begun: set[int] = set()
        self._form, self._tools = form, tools
        self._readers: dict[int, ToolReader] = {}

    def _choice(self, answer: int, text: str, chances: Sequence[LogProbability]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._form is not None:
            reader = ToolReader(self._form, self._tools)
            said = reader.push(text)[0] + reader.finish()[0]
            self._readers[answer] = reader
            if reader.calls:
                calls = [call.as_dict() for call in reader.calls]
                message = {"role": "assistant", "content": said or None, "tool_calls": calls}
        return {"index": answer, "message": message, "logprobs": self._told(chances)}

    def _delta(self, piece: AnswerPiece) -> dict[str, Any]:
        delta: dict[str, Any] = {} if piece.answer in self._begun else {"role": "assistant"}
        self._begun.add(piece.answer)
        text = piece.text
        if self._form is not None:
            reader = self._readers.setdefault(piece.answer, ToolReader(self._form, self._tools))
            first = len(reader.calls)
            text = reader.push(piece.text)[0]
            if piece.ended is not None:
                text += reader.finish()[0]
            if reader.calls[first:]:
                delta["tool_calls"] = [call.as_dict(first + at) for at, call in enumerate(reader.calls[first:])]
        return {"index": piece.answer, "delta": {**delta, "content": text}, "logprobs": self._told(piece.chances)}

    def _end(self, answer: int, ended: AnswerEnd | None) -> dict[str, Any]:
        reader, found = self._readers.get(answer), super()._end(answer, ended)
        if reader is not None and reader.calls and found["finish_reason"] == "stop":
            found["finish_reason"] = "tool_calls"
        return found

    def _told(self, chances: Sequence[LogProbability]) -> dict[str, Any] | None:
        if not self._chances:
            return None
        return {"content": [{**self._one(each.token, each.value), "top_logprobs": self._top(each)} for each in chances]}

    def _top(self, chance: LogProbability) -> list[dict[str, Any]]:
        return [self._one(token, value) for token, value in chance.top]

    def _one(self, token: int, value: float) -> dict[str, Any]:
        return {"token": self._name(token), "logprob": _finite(value), "bytes": list(self._bytes(token))}


class CompletionShape(AnswerShape):
    """Of `/v1/completions`."""

    whole_kind = chunk_kind = "text_completion"

    def __init__(self, identity: str, model: str, tokenizer: TextTokenizer, chances: bool, echo: Sequence[str]) -> None:
        super().__init__(identity, model, tokenizer, chances)
        self._echo, self._begun, self._told_letters = echo, set[int](), dict[int, int]()

    def _choice(self, answer: int, text: str, chances: Sequence[LogProbability]) -> dict[str, Any]:
        echo = self._echo[answer] if self._echo and answer not in self._begun else ""
        self._begun.add(answer)
        return {"index": answer, "text": echo + text, "logprobs": self._told(answer, chances)}

    def _delta(self, piece: AnswerPiece) -> dict[str, Any]:
        return self._choice(piece.answer, piece.text, piece.chances)

    def _told(self, answer: int, chances: Sequence[LogProbability]) -> dict[str, Any] | None:
        if not self._chances:
            return None
        offsets = list[int]()
        for each in chances:
            offsets.append(self._told_letters.get(answer, 0))
            self._told_letters[answer] = offsets[-1] + len(self._bytes(each.token).decode(errors="ignore"))
        return {
            "tokens": [self._name(each.token) for each in chances],
            "token_logprobs": [_finite(each.value) for each in chances],
            "top_logprobs": [{self._name(token): _finite(value) for token, value in each.top} for each in chances],
            "text_offset": offsets,
        }
