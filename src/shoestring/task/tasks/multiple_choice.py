"""Questions of a file, each with answers to choose among."""

from typing import Any, Literal

from shoestring.json_files import Row
from shoestring.method import method
from shoestring.task.lines import ListedTask, Whose, text_of
from shoestring.task.reading import last_line
from shoestring.task.task import Problem

NAME = "multiple_choice"


@method(
    "task",
    kind="task",
    name=NAME,
    paper="Language Models are Few-Shot Learners, arXiv:2005.14165",
    claim="the answer that is likeliest for its length is a model's choice; no text is to be understood",
    cost="a pass over each option of each question",
)
class MultipleChoice(ListedTask):
    """Multiple choice by likelihood, from JSON lines: {"question": ..., "choices": [...], "answer": 0}.

    The model's answer is the option that maximises log p(option | question) / length. 'answer' is the place of the right
    choice from 0, its letter, or its text. The paper also divides by the likelihood without the question, for some tasks.

    path: of the file.
    split: that its lines are in.
    normalise: the length that likelihoods are divided by: bytes, tokens, or none.
    """

    def __init__(
        self, *, path: str, split: Whose = "test", normalise: Literal["byte", "token", "none"] = "byte"
    ) -> None:
        super().__init__(NAME, path, split, _problem)
        self.normalise = normalise
        self.most_tokens = max(len(o.encode()) for _, p in self._problems.values() for o in p.options) + 4

    def extract(self, problem: Problem, text: str) -> str | None:
        """The option that the last line is, in text, by its letter, or both."""
        line = last_line(text)
        for place, option in enumerate(problem.options):
            letter = _letter(place)
            if line in (option, letter, f"{letter}.", f"({letter})", f"{letter}. {option}", f"({letter}) {option}"):
                return option
        return None


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def _problem(row: Row) -> Problem:
    options = row.get("choices")
    if not isinstance(options, list) or not 2 <= len(options) <= 26:
        raise ValueError("'choices' is not a list of 2 to 26 texts")
    if not all(isinstance(each, str) and each.strip() for each in options):
        raise ValueError("a choice is not text")
    chosen = [each.strip() for each in options]
    if len(set(chosen)) < len(chosen):
        raise ValueError("two choices are the same")
    place = _place(row.get("answer"), chosen)
    return Problem("", text_of(row, "question", "prompt"), {"place": place}, chosen[place], tuple(chosen))


def _place(answer: Any, options: list[str]) -> int:
    """Raises: ValueError where it is no option."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    if isinstance(answer, str):
        if answer.strip() in options:
            return options.index(answer.strip())
        letters = [_letter(place) for place in range(len(options))]
        if answer.strip() in letters:
            return letters.index(answer.strip())
    raise ValueError("'answer' is no choice: give its place from 0, its letter or its text")
