"""Questions of a file, each with the texts that are right."""

import re
import string
from typing import Annotated, Literal

from annotated_types import Interval

from shoestring.json_files import Row
from shoestring.method import method
from shoestring.task.lines import ListedTask, Whose, text_of
from shoestring.task.reading import last_line
from shoestring.task.task import Problem, Score

NAME = "exact_match"

_MARKS = str.maketrans("", "", string.punctuation)


@method(
    "task",
    kind="task",
    name=NAME,
    paper="SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250",
    claim="an answer is right where it is one of those that people gave, but for case, marks and articles",
    cost="none",
)
class ExactMatch(ListedTask):
    """Questions with known answers, from JSON lines: {"question": ..., "answer": "Oslo"}; of several answers, a list.

    path: of the file.
    split: that its lines are in.
    compare: 'loose', as the paper does, without case, marks, and 'a', 'an', 'the'; 'exact', each character counts.
    tokens: of an answer at most.
    """

    def __init__(
        self,
        *,
        path: str,
        split: Whose = "test",
        compare: Literal["loose", "exact"] = "loose",
        tokens: Annotated[int, Interval(ge=1, le=1 << 16)] = 64,
    ) -> None:
        super().__init__(NAME, path, split, _problem)
        self.compare, self.most_tokens = compare, tokens

    def extract(self, problem: Problem, text: str) -> str | None:
        """The last line that is not empty, as it is compared."""
        return self._compared(last_line(text)) or None

    def judge(self, problem: Problem, answer: str) -> Score:
        """Whether it is one of the right answers."""
        right = {self._compared(each) for each in problem.data["answers"]}
        return Score(1.0) if answer in right else Score(0.0, "another answer is right")

    def _compared(self, text: str) -> str:
        if self.compare == "exact":
            return text.strip()
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_MARKS)).split())


def _problem(row: Row) -> Problem:
    answers = row.get("answers", row.get("answer"))
    listed = [answers] if isinstance(answers, str) else answers
    if not isinstance(listed, list) or not listed or not all(isinstance(a, str) and a.strip() for a in listed):
        raise ValueError("'answer' is not text, or a list of texts")
    chosen = [each.strip() for each in listed]
    return Problem("", text_of(row, "question", "prompt"), {"answers": chosen}, chosen[0])
