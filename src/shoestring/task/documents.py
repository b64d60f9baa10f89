"""Problems with their answers as a corpus: text to train a model of."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from shoestring import atomic
from shoestring.task.task import Task


@dataclass(frozen=True)
class Portion:
    """So many problems of a task. times: how often each stands in the text, where a task has few."""

    task: Task
    count: int
    times: int = 1


def answered(portions: Sequence[Portion], seed: int) -> Iterator[tuple[str, str]]:
    """(prompt, what is to be written after it) of problems of the split 'train', task after task in turn.

    No problem of another split is among them.

    A task that has fewer gives all it has; a problem without a known answer is left out.
    """
    each = [
        [
            (one.prompt, portion.task.completion(one))
            for one in portion.task.problems("train", seed, portion.count)
            if one.answer is not None
        ]
        * portion.times
        for portion in portions
    ]
    for row in zip_longest(*each):
        yield from (text for text in row if text is not None)


def documents(portions: Sequence[Portion], seed: int) -> Iterator[str]:
    """The same as texts."""
    return (prompt + answer for prompt, answer in answered(portions, seed))


def write_corpus(path: Path, portions: Sequence[Portion], seed: int) -> int:
    """Write `answered` as JSON lines that `--data.corpus` takes with `--data.kind answers`. Returns how many there are."""
    lines = [
        json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False)
        for prompt, answer in answered(portions, seed)
    ]
    atomic.write_text(path, "\n".join(lines) + "\n")
    return len(lines)
