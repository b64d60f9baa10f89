"""Texts that a model writes itself, for a draft to be aligned with it; and how well a draft then does."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shoestring import atomic
from shoestring.budget.charge import NOTHING, Charge
from shoestring.decode.engine import Engine
from shoestring.decode.request import DEFAULT, Request
from shoestring.decode.sampling import Sampling
from shoestring.errors import UsageError


class OwnText(NamedTuple):
    """prompt, answer: token ids. charge: what the answer took."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    charge: Charge


def own_texts(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = DEFAULT,
    ends: frozenset[int] = frozenset(),
    samples: int = 1,
) -> Iterator[OwnText]:
    """The model's answers to these prompts, prompt after prompt, each as soon as those before it are there.

    A draft model is trained on them as on any corpus (`save_texts`), a multi-token head by `mtp_head.train_head`.

    engine: of the model that writes. prompts: token ids. max_new_tokens: of an answer. ends: tokens that end one.
    samples: answers to each prompt.
    """
    numbers: dict[int, int] = {}
    for place, prompt in enumerate(prompts):
        number = engine.submit(Request(tuple(prompt), sampling, max_new_tokens, ends, samples))
        numbers[number] = place
    done, next_ = dict[tuple[int, int], OwnText](), 0
    for answer in engine.run():
        if answer.number not in numbers:
            continue
        place = numbers[answer.number]
        done[place, answer.sample] = OwnText(tuple(prompts[place]), answer.tokens, answer.spent.charge)
        while next_ < len(prompts) * samples and (key := divmod(next_, samples)) in done:
            yield done.pop(key)
            next_ += 1


def save_texts(path: Path, texts: Iterable[OwnText], decode: Callable[[Sequence[int]], str]) -> tuple[int, Charge]:
    """Write texts as a corpus, a JSON line {"text": prompt and answer} each. Returns (how many, what they took).

    decode: makes text of token ids. Raises: UsageError where there are none.
    """
    lines, charge = list[str](), NOTHING
    for text in texts:
        lines.append(json.dumps({"text": decode([*text.prompt, *text.answer])}, ensure_ascii=False) + "\n")
        charge += text.charge
    if not lines:
        raise UsageError("there is no text to align a draft with: give prompts")
    atomic.write_text(path, "".join(lines))
    return len(lines), charge


@dataclass(frozen=True)
class DraftReport:
    """How well drafts did.

    rate: share of drafted tokens that stayed.
    block: tokens that a checking pass brings a row on average, its own choice included: block efficiency.
    flops: operations of drafting, for each of the model's own.
    """

    rate: float
    block: float
    flops: float


def draft_report(
    engine: Engine, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling = DEFAULT
) -> DraftReport:
    """Let an engine with a drafter answer these prompts one after the other, and say how well its drafts did."""
    drafted, accepted, passes, written = engine.drafted, engine.accepted, engine.passes, engine.written
    own = drafting = reading = 0
    for prompt in prompts:
        for answer in engine.run([Request(tuple(prompt), sampling, max_new_tokens)]):
            drafting += answer.spent.drafting.flops
            own += answer.spent.charge.flops - answer.spent.drafting.flops
            reading += max(0, -(-len(prompt) // engine.tokens) - 1)  # passes that only read
    drafted, accepted = engine.drafted - drafted, engine.accepted - accepted
    if not own:
        raise UsageError("there is nothing to judge a draft by: give prompts")
    passes, written = engine.passes - passes - reading, engine.written - written
    return DraftReport(accepted / max(drafted, 1), written / passes, drafting / own)
