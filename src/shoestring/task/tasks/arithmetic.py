"""Sums, differences and products of whole numbers."""

from typing import Annotated, Literal

from annotated_types import Interval

from shoestring.method import method
from shoestring.task.chance import Chance
from shoestring.task.reading import last_whole_number
from shoestring.task.task import GeneratedTask, Problem

NAME = "arithmetic"


@method(
    "task",
    kind="task",
    name=NAME,
    paper="Language Models are Few-Shot Learners, arXiv:2005.14165",
    claim="models learn to add and subtract numbers of few digits before those of many; difficulty has a dial",
    cost="none",
)
class Arithmetic(GeneratedTask):
    """A calculation with whole numbers: '12 + 340 =' has the answer 352.

    Products go before sums, as usual. Two calculations with the same numbers in another order, where the order does not
    matter, are in the same split. The paper asks in words; here it is a formula.

    digits: of a number at most; each length is equally likely.
    terms: how many numbers.
    operations: the signs that may stand between two.
    """

    name = NAME
    instruction = "Work out the result. Answer with the number alone."

    def __init__(
        self,
        *,
        digits: Annotated[int, Interval(ge=1, le=18)] = 3,
        terms: Annotated[int, Interval(ge=2, le=16)] = 2,
        operations: Literal["+", "-", "*", "+-", "+*", "-*", "+-*"] = "+-",
    ) -> None:
        self.digits, self.terms, self.operations = digits, terms, operations
        self.most_tokens = (terms if "*" in operations else 1) * digits + 6

    def draw(self, chance: Chance) -> Problem:
        """As `GeneratedTask.draw`."""
        numbers = [chance.number(self.digits) for _ in range(self.terms)]
        signs = [chance.pick(self.operations) for _ in numbers[1:]]
        total, product = 0, numbers[0]
        for sign, number in zip(signs, numbers[1:], strict=True):
            if sign == "*":
                product *= number
            else:
                total, product = total + product, number if sign == "+" else -number
        words = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
        return Problem("", f"{words} =", {"numbers": numbers, "signs": signs}, str(total + product))

    def group(self, problem: Problem) -> str:
        """The formula; with its numbers in order where all are added, or all multiplied."""
        signs = set(problem.data["signs"])
        alike = len(signs) == 1 and signs != {"-"}
        return f"{signs} {sorted(problem.data['numbers'])}" if alike else problem.prompt

    def extract(self, problem: Problem, text: str) -> str | None:
        """The last number of the text, where it is whole."""
        return last_whole_number(text)
