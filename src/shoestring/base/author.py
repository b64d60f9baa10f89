"""Any model that was tuned to answer, as an author of text: its own chat template, the engine that decodes, what it took."""

import hashlib
from collections.abc import Sequence

from shoestring.base.open_model import open_model
from shoestring.base.writer import Writer
from shoestring.budget.charge import NOTHING
from shoestring.contract.author import Authored, AuthoredText
from shoestring.decode.engine import ROWS, Engine
from shoestring.decode.request import Answer, Request, Stop
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError


class ModelAuthor:
    """A `Writer` as an `Author`: each instruction is a user's message. rows: answers written at a time."""

    def __init__(self, writer: Writer, rows: int = ROWS) -> None:
        self.writer, self.rows = writer, rows
        template = str(writer.opened.about.chat_template)
        parts = (writer.opened.about.digest, writer.tokenizer.fingerprint, template)
        self.digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def answers(self, asked: Sequence[str], seeds: Sequence[int], tokens: int, temperature: float) -> Authored:
        if not asked:
            return Authored(())
        requests = [
            Request(
                self._ids(text, tokens), Sampling(temperature=temperature, seed=seed), tokens, self.writer.answer_ends
            )
            for text, seed in zip(asked, seeds, strict=True)
        ]
        longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
        rows = min(self.rows, len(requests))
        engine = Engine(self.writer.opened.model, rows=rows, room=rows * longest)
        numbers = [engine.submit(request) for request in requests]
        found: dict[int, Answer] = {answer.number: answer for answer in engine.run()}
        answers = [found[number] for number in numbers]
        texts = tuple(
            AuthoredText(self.writer.tokenizer.decode(each.tokens).strip(), each.stop is Stop.END) for each in answers
        )
        return Authored(texts, sum((each.spent.charge for each in answers), NOTHING))

    def _ids(self, text: str, tokens: int) -> tuple[int, ...]:
        ids = tuple(self.writer.chat_ids([{"role": "user", "content": text}]))
        if len(ids) + tokens > self.writer.context:
            raise UsageError(
                f"an instruction of {len(ids)} tokens and an answer of {tokens} are more than the {self.writer.context} that "
                f"{self.writer.opened.about.place} reads: make passages or answers shorter"
            )
        return ids


def open_author(place: str) -> ModelAuthor:
    """The model at a place as an author. Raises: UsageError where it has no tokenizer or no chat template."""
    author = ModelAuthor(Writer.of(open_model(place)))
    author.writer.chat.ends()  # refuses a model without a template before any work
    return author
