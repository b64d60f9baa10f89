"""What `shoestring generate` writes: samples as they come, and what they took."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shoestring.base.writer import Writer
from shoestring.budget.charge import NOTHING, Charge
from shoestring.budget.units import show
from shoestring.cli.prompts import Prompt
from shoestring.data.chat import Message
from shoestring.decode import AnswerSpent, Engine, Event, Request, Stop
from shoestring.decode.answer_text import AnswerText

WORDS = {Stop.END: "end", Stop.LENGTH: "length", Stop.CONTEXT: "context", Stop.CANCELLED: "stop", Stop.ROOM: "room"}
"""What --json says of why a text ended; one that a stop string ended was cancelled."""


@dataclass(frozen=True)
class Sample:
    """One continuation, as --json prints it.

    prompt, text: what was given, and what was written after it.
    messages: that were given, where it is a chat.
    sample: its number among those of this prompt, from 1.
    prompt_tokens, tokens: read, and written.
    seconds: that both took; what was read together is divided.
    stopped: 'end' of the text, 'length' as --tokens allows, full 'context', or 'stop' for a stop string.
    spent: positions read, reused and wasted, FLOPs, bytes of weights and cache moved.
    changed: tokens of drafts that stayed though the model chose another; not said where there are none.
    """

    prompt: str
    messages: tuple[Message, ...]
    sample: int
    text: str
    prompt_tokens: int
    tokens: int
    seconds: float
    stopped: str
    spent: Charge
    changed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self) | {"spent": self.spent.as_dict()}
        silent = {name for name in ("messages", "changed") if not found[name]}
        return {key: value for key, value in found.items() if key not in silent}


@dataclass
class GrowingText:
    """A text that is being written.

    prompt, number: what it goes on from, and which of the samples it is.
    answer: of `tokens` tokens so far. pending: what is still to be shown. ended: why, and what it took.
    """

    prompt: Prompt
    number: int
    answer: AnswerText
    tokens: int = 0
    pending: str = ""
    ended: tuple[Stop, AnswerSpent] | None = None


def written(
    engine: Engine, writer: Writer, prompts: Sequence[Prompt], requests: Sequence[Request], stops: Sequence[str]
) -> Iterator[tuple[Sample | None, str]]:
    """(None, a piece of what is to be shown), and (a sample, '') when it is whole: prompt after prompt, sample after sample, though
    all are written together."""
    texts: dict[tuple[int, int], GrowingText] = {}
    rows = sum(each.samples for each in requests)
    for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True), start=1):
        ticket = engine.submit(request)
        for index in range(request.samples):
            header = f"--- prompt {number} of {len(prompts)}, sample {index + 1} of {request.samples}\n" * (rows > 1)
            header += "" if prompt.messages else prompt.text
            answer = AnswerText(writer.tokenizer.stream(), stops)
            texts[ticket, index] = GrowingText(prompt, index + 1, answer, pending=header)
    queue = list(texts.values())
    while queue:
        for event in engine.step():
            _take(event, texts[event.number, event.sample], engine)
        while queue:
            first = queue[0]
            if first.pending:
                yield None, first.pending
                first.pending = ""
            if first.ended is None:
                break
            yield None, "\n"
            yield _sample(queue.pop(0)), ""
    for note in (*engine.notes, *engine.store.notes()):
        print(f"({note})", file=sys.stderr)


def _take(event: Event, text: GrowingText, engine: Engine) -> None:
    """Put what a pass brought to a text."""
    for written in event.written:
        if text.answer.stopped:
            break
        text.tokens += 1
        text.pending += text.answer.push(written.token)
        if text.answer.stopped and event.stop is None:
            engine.cancel(event.number, event.sample)
    if event.stop is not None and event.spent is not None:
        text.pending += text.answer.finish()
        text.ended = event.stop, event.spent


def _sample(text: GrowingText) -> Sample:
    """A text that is whole."""
    assert text.ended is not None
    stop, spent = text.ended
    return Sample(
        text.prompt.text,
        text.prompt.messages,
        text.number,
        text.answer.text,
        len(text.prompt.ids),
        text.tokens,
        spent.total,
        WORDS[Stop.CANCELLED] if text.answer.stopped else WORDS[stop],
        spent.charge,
        spent.changed,
    )


def sum_up(samples: Sequence[Sample], seconds: float) -> None:
    """One line of what all of it took."""
    written, spent = sum(sample.tokens for sample in samples), sum((sample.spent for sample in samples), NOTHING)
    beside = [f"{count} {what}" for what, count in (("reused", spent.reused), ("wasted", spent.wasted)) if count]
    print(
        f"({', '.join([f'{spent.read} positions read', *beside])}, {written} tokens written in {seconds:.2f} s: "
        f"{written / seconds:.1f} tokens/s; {show('flops', spent.flops)}, {show('bytes', spent.moved)} moved)",
        file=sys.stderr,
    )
    if changed := sum(sample.changed for sample in samples):
        texts = sum(sample.changed > 0 for sample in samples)
        print(
            f"({changed} drafted tokens stayed though the model chose others: {texts} of {len(samples)} texts are not its own)",
            file=sys.stderr,
        )
