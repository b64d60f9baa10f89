"""The data sets of the package reasoning-gym."""

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any

from annotated_types import Interval

from shoestring.errors import UsageError, did_you_mean, first_line
from shoestring.method import method
from shoestring.task.chance import Chance
from shoestring.task.reading import last_line
from shoestring.task.task import GeneratedTask, Problem, Score

NAME = "reasoning_gym"

BLOCK = 256
"""Problems of one of its data sets; the next ones are of the same data set with another seed."""

RUNS_TEXT = re.compile(r"(?<!\w)(?:eval|exec|parse_expr|sympify)\(")
"""What a check does that gives an answer to Python to run, as sympy's parser does too."""


@method(
    "task",
    kind="task",
    name=NAME,
    paper="REASONING GYM: Reasoning Environments for Reinforcement Learning with Verifiable Rewards, arXiv:2505.24760",
    claim="over 100 generators of problems with checks, of adjustable difficulty",
    cost="that of the package, which is an extra: pip install 'shoestring[tasks]'",
)
class ReasoningGym(GeneratedTask):
    """Problems that the package reasoning-gym makes and checks.

    Its own check decides, and may score between 0 and 1. Data sets whose check runs the answer as Python are refused: what
    a model writes is never run here.

    dataset: its name there.
    settings: of that data set, as the package names them.
    tokens: of an answer at most.
    Raises: UsageError where the package is not installed, or has no such data set or setting.
    """

    stop = ()

    def __init__(
        self,
        *,
        dataset: str,
        settings: Mapping[str, Any] = {},
        tokens: Annotated[int, Interval(ge=1, le=1 << 16)] = 256,
    ) -> None:
        self.dataset, self.settings, self.most_tokens = dataset, dict(settings), tokens
        self.name = f"{NAME}-{dataset}"
        made = self._checker
        if RUNS_TEXT.search(inspect.getsource(type(made))):
            raise UsageError(f"reasoning-gym's {dataset} runs answers as Python to check them: it cannot be used here")

    @cached_property
    def _checker(self) -> Any:
        """A data set, for its check."""
        return self._made(0)

    def _made(self, seed: int) -> Any:
        try:
            from reasoning_gym.factory import DATASETS, create_dataset
        except ImportError as error:
            raise UsageError(f"reasoning-gym cannot be loaded ({error}): pip install 'shoestring[tasks]'") from None
        if self.dataset not in DATASETS:
            raise UsageError(f"reasoning-gym has no data set '{self.dataset}': {did_you_mean(self.dataset, DATASETS)}")
        try:
            return create_dataset(self.dataset, **{**self.settings, "seed": seed, "size": BLOCK})
        except (TypeError, ValueError, AssertionError) as error:
            raise UsageError(f"reasoning-gym's {self.dataset}: {first_line(error)}") from None

    def candidates(self, seed: int) -> Iterator[Problem]:
        """As `GeneratedTask.candidates`."""
        chance = Chance(f"{self.name} {seed}")
        while True:
            for entry in self._made(chance.whole(0, 2**31 - 1)):
                answer = entry["answer"]
                yield Problem(
                    "", str(entry["question"]).rstrip(), entry, None if answer is None else str(answer).strip()
                )

    def draw(self, chance: Chance) -> Problem:
        """One problem of a data set of its own."""
        return next(self.candidates(chance.whole(0, 2**31 - 1)))

    def extract(self, problem: Problem, text: str) -> str | None:
        """What follows the last '<answer>' or 'Answer:', or else all; the last line of it, where the answer has one line."""
        found = re.split(r"<answer>|\banswer:", text, flags=re.IGNORECASE)[-1].partition("</answer>")[0].strip()
        if problem.answer is not None and "\n" not in problem.answer:
            found = last_line(found)
        return found or None

    def judge(self, problem: Problem, answer: str) -> Score:
        """What the package says."""
        try:
            value = float(self._checker.score_answer(answer, entry=dict(problem.data)))
        except Exception as error:  # its checks do not all bear every text
            return Score(0.0, f"the check failed: {first_line(error)}")
        value = min(max(value, 0.0), 1.0)
        return Score(value, "" if value == 1 else "reasoning-gym's check says so")
