"""Nested operations on digits (ListOps)."""

from typing import Annotated

from annotated_types import Interval

from shoestring.method import Fraction, method
from shoestring.task.chance import Chance
from shoestring.task.reading import last_whole_number
from shoestring.task.task import GeneratedTask, Problem

NAME = "listops"
OPERATORS = ("MIN", "MAX", "MED", "SM")


@method(
    "task",
    kind="task",
    name=NAME,
    paper="ListOps: A Diagnostic Dataset for Latent Tree Learning, arXiv:1804.06028",
    claim="a single correct parse: models that get the tree right solve it, sequence models of its day do not",
    cost="none",
)
class ListOps(GeneratedTask):
    """A nested operation on digits: '[MAX 2 9 [MIN 4 7 ] 0 ] =' has the answer 9.

    MIN and MAX; MED, the median (of an even count the mean of the middle two, rounded down); SM, the sum modulo 10. As in the
    paper, but for the dials' defaults, which make shorter formulas.

    depth: operations within each other, at most.
    arguments: of an operation, at most; at least two.
    nested: the probability that an argument is an operation, where the depth allows.
    """

    name = NAME
    instruction = (
        "Work out the result, a digit. MED is the median, rounded down; SM is the sum modulo 10. "
        "Answer with the digit alone."
    )
    most_tokens = 4

    def __init__(
        self,
        *,
        depth: Annotated[int, Interval(ge=1, le=20)] = 2,
        arguments: Annotated[int, Interval(ge=2, le=10)] = 4,
        nested: Fraction = 0.25,
    ) -> None:
        self.depth, self.arguments, self.nested = depth, arguments, nested

    def draw(self, chance: Chance) -> Problem:
        """As `GeneratedTask.draw`."""
        text, value = self._operation(chance, self.depth)
        return Problem("", f"{text} =", {}, str(value))

    def _operation(self, chance: Chance, depth: int) -> tuple[str, int]:
        name, words, values = chance.pick(OPERATORS), list[str](), list[int]()
        for _ in range(chance.whole(2, self.arguments)):
            if depth > 1 and chance.happens(self.nested):
                text, value = self._operation(chance, depth - 1)
            else:
                value = chance.whole(0, 9)
                text = str(value)
            words.append(text)
            values.append(value)
        return f"[{name} {' '.join(words)} ]", result(name, values)

    def extract(self, problem: Problem, text: str) -> str | None:
        """The last number of the text, where it is whole."""
        return last_whole_number(text)


def result(operator: str, values: list[int]) -> int:
    """Of one operation."""
    if operator == "MED":
        ordered, middle = sorted(values), len(values) // 2
        return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
    if operator == "SM":
        return sum(values) % 10
    return min(values) if operator == "MIN" else max(values)
