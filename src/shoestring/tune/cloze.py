"""Classes as words: a text becomes a question whose answer is one of a few words, and their likelihoods are the classes'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError


@dataclass(frozen=True)
class ClozePattern:
    """A pattern and its verbaliser.

    asked: makes the tokens of the question of a text: those of "Great phone! It was", say.
    words: the tokens that stand for each class: of " good" and " bad". They may be several, and of different numbers.
    """

    asked: Callable[[str], Sequence[int]]
    words: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if len(self.words) < 2 or not all(self.words):
            raise UsageError("a pattern needs a word of a token or more for each of two classes or more")


def scores(model: LanguageModule, pattern: ClozePattern, texts: Sequence[str]) -> tuple[Tensor, int]:
    """(log p(words of the class | question) [texts, classes], operations of the pass).

    Raises: UsageError where a question is empty, or longer than the model reads.
    """
    rows, starts = list[list[int]](), list[int]()
    for text in texts:
        question = list(pattern.asked(text))
        if not question:
            raise UsageError("a pattern makes no token of a text: there is nothing to answer")
        for word in pattern.words:
            rows.append([*question, *word])
            starts.append(len(question))
    longest = max(map(len, rows))
    if longest > model.about.context:
        raise UsageError(f"a question and its answer have {longest} tokens, and the model reads {model.about.context}")
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    answers = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        answers[number, start : len(row)] = True
    ids, answers = ids.to(model.device), answers.to(model.device)
    # what follows the end of a row is seen by none of its tokens: attention looks back
    reading = model.read(Inputs(ids[:, :-1]))
    wanted = answers[:, 1:]
    logits = reading.head.logits(reading.hidden[wanted]).float().log_softmax(-1)
    each = logits.gather(-1, ids[:, 1:][wanted][:, None])[:, 0]
    owner = wanted.nonzero()[:, 0]
    found = torch.zeros(len(rows), device=each.device).index_add(0, owner, each)
    shape = Shape(len(rows), longest - 1, backward=torch.is_grad_enabled())
    return found.view(len(texts), len(pattern.words)), model.cost(shape).flops
