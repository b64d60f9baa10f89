"""What a task is: problems, and a check of any text that claims to answer one.

A problem's split is decided by what it is about, not by the seed: no seed and no count puts one problem into two splits.
"""

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, get_args

from shoestring.task.chance import Chance

Split = Literal["train", "tuning", "test"]
"""What problems are for: to learn from, to choose settings by, to be judged by."""
SPLITS: tuple[Split, ...] = get_args(Split)

PARTS: tuple[Split, ...] = ("test", "tuning", *("train",) * 8)
"""The splits by the tenth that a hash falls into."""

MISSES = 2000
"""Draws in a row without a new problem after which there are none left, but for a few."""


@dataclass(frozen=True)
class Problem:
    """A question.

    id: the same for the same question, whatever the seed.
    prompt: what to answer, without white space at its end.
    data: what a check needs beside it.
    answer: one that is right, without white space at its ends; None where none is known.
    options: the answers to choose among; none where the answer is to be written. Which one is held likeliest is the answer.
    """

    id: str
    prompt: str
    data: Mapping[str, Any] = field(default_factory=dict)
    answer: str | None = None
    options: tuple[str, ...] = ()


class Score(NamedTuple):
    """What a check says.

    value: from 0, wrong, to 1, right.
    reason: what is wrong, in a few words; '' where nothing is.
    """

    value: float
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether it is fully right."""
        return self.value >= 1


class Task(abc.ABC):
    """A kind of question.

    A task reads no clock and draws no chance but from a seed: equal arguments give equal results.

    instruction: what to do and how to write the answer, in a sentence or two, for a model that was tuned to follow.
    stop: strings of which any ends an answer; it is no part of it.
    most_tokens: of an answer, for any tokenizer that has a token for each byte.
    normalise: how the likelihoods of options of different length are compared: per 'byte', per 'token', or as they are.
    """

    instruction: str = "Answer the question."
    stop: tuple[str, ...] = ("\n",)
    most_tokens: int = 16
    normalise: Literal["byte", "token", "none"] = "byte"

    @abc.abstractmethod
    def problems(self, split: Split, seed: int, count: int) -> list[Problem]:
        """So many problems, no two the same; fewer where there are no more.

        split: no problem of one split is in another, whatever the seeds.
        seed: of which problems, and of their order.
        count: the first problems of a larger count are those of a smaller one.
        """

    @abc.abstractmethod
    def extract(self, problem: Problem, text: str) -> str | None:
        """The answer that a text gives, so written that equal answers are equal texts; None: it gives none.

        It needs no right answer: a vote counts what this returns.
        """

    def check(self, problem: Problem, text: str) -> Score:
        """Whether a text answers a problem. Pure, exact, and defined for every text."""
        found = self.extract(problem, text)
        return Score(0.0, "no answer was found") if found is None else self.judge(problem, found)

    def judge(self, problem: Problem, answer: str) -> Score:
        """Whether what `extract` found is right."""
        return Score(1.0) if answer == problem.answer else Score(0.0, "another answer is right")

    def completion(self, problem: Problem) -> str:
        """What is to be written after a problem's prompt, to learn from. Raises: ValueError where no answer is known."""
        if problem.answer is None:
            raise ValueError(f"no answer to {problem.id} is known")
        return f" {problem.answer}{self.stop[0] if self.stop else ''}"

    def document(self, problem: Problem) -> str:
        """A problem with its answer, as a text to learn from. Raises: ValueError where no answer is known."""
        return problem.prompt + self.completion(problem)


class GeneratedTask(Task):
    """A task that draws its problems at random.

    It draws from one stream for all splits, and gives those that fall into the split that is asked for.
    """

    name: str
    """Of its card."""

    @abc.abstractmethod
    def draw(self, chance: Chance) -> Problem:
        """A problem; its id is filled in later."""

    def group(self, problem: Problem) -> str:
        """What decides the split: problems that are alike, so that one tells the answer of another, have it in common."""
        return problem.prompt

    def candidates(self, seed: int) -> Iterator[Problem]:
        """Problems of any split, without end; the same may come again."""
        chance = Chance(f"{self.name} {seed}")
        while True:
            yield self.draw(chance)

    def problems(self, split: Split, seed: int, count: int) -> list[Problem]:
        """As `Task.problems`. Of a small set of problems, the last few may not be found."""
        found: dict[str, Problem] = {}
        misses = 0
        if count < 1:
            return []
        for each in self.candidates(seed):
            if each.prompt in found or split_of(self.group(each)) != split:
                misses += 1
                if misses == MISSES:
                    break
                continue
            misses = 0
            found[each.prompt] = named(self.name, each)
            if len(found) == count:
                break
        return list(found.values())


def split_of(group: str) -> Split:
    """The split of what a group of problems is about."""
    return PARTS[int.from_bytes(_digest("split " + group)[:8], "big") % len(PARTS)]


def named(task: str, problem: Problem) -> Problem:
    """The problem with the id that its content has."""
    content = _digest("\0".join((problem.prompt, *problem.options)))
    return replace(problem, id=f"{task}-{content.hex()[:12]}")


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
