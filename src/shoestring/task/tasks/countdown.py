"""Making a number of given ones (the numbers round of Countdown)."""

from fractions import Fraction
from typing import Annotated

from annotated_types import Interval

from shoestring.method import method
from shoestring.task.chance import Chance
from shoestring.task.formula import NoFormula, numbers_and_value
from shoestring.task.reading import last_line
from shoestring.task.task import GeneratedTask, Problem, Score

NAME = "countdown"


@method(
    "task",
    kind="task",
    name=NAME,
    paper="Stream of Search (SoS): Learning to Search in Language, arXiv:2404.03683",
    claim="models that learn from searches with their mistakes solve more than those that learn from solutions alone",
    cost="none",
)
class Countdown(GeneratedTask):
    """Numbers and a target: 'make 46 from 3 7 25 =' has the answer '25 + 3 * 7'.

    Each number is used exactly once, with + - * / and brackets. Any formula of exactly that value is right; fractions on the
    way are allowed. Only problems with a solution in positive whole numbers are asked. Problems of the same numbers and target
    are in the same split. The paper has four numbers, and targets from 10 to 100.

    numbers: how many.
    largest: a given number at most.
    target: at most.
    """

    name = NAME
    instruction = (
        "Make the number from the others, each used exactly once, with + - * / and brackets. "
        "Answer with the formula alone, without its value."
    )

    def __init__(
        self,
        *,
        numbers: Annotated[int, Interval(ge=2, le=6)] = 3,
        largest: Annotated[int, Interval(ge=5, le=999)] = 20,
        target: Annotated[int, Interval(ge=10, le=9999)] = 100,
    ) -> None:
        self.numbers, self.largest, self.target = numbers, largest, target
        self.most_tokens = 12 * numbers

    def draw(self, chance: Chance) -> Problem:
        """As `GeneratedTask.draw`."""
        while True:
            given = [chance.whole(1, self.largest) for _ in range(self.numbers)]
            left = [(str(number), number) for number in chance.shuffled(given)]
            while len(left) > 1:
                one, other, *left = chance.shuffled(left)
                left.append(_joined(chance, one, other))
            ((formula, value),) = left
            if 0 < value <= self.target and value not in given:
                break
        asked = " ".join(map(str, given))
        data = {"numbers": given, "target": value}
        return Problem("", f"make {value} from {asked} =", data, _bare(formula))

    def group(self, problem: Problem) -> str:
        """The numbers, in whatever order, and the target."""
        return f"{problem.data['target']} {sorted(problem.data['numbers'])}"

    def extract(self, problem: Problem, text: str) -> str | None:
        """The formula of the last line that is not empty, without spaces; what stands after an '=' is left out."""
        formula = last_line(text).partition("=")[0].replace("\u00d7", "*").replace("\u00f7", "/").replace("\u2212", "-")
        return "".join(formula.split()) or None

    def judge(self, problem: Problem, answer: str) -> Score:
        """Whether it is a formula of these numbers, each once, that has the target's value."""
        try:
            numbers, value = numbers_and_value(answer, longest=16 * self.numbers)
        except NoFormula as error:
            return Score(0.0, str(error))
        if sorted(numbers) != sorted(problem.data["numbers"]):
            return Score(0.0, "its numbers are not those given, each once")
        return Score(1.0) if value == Fraction(problem.data["target"]) else Score(0.0, "it has another value")


def _joined(chance: Chance, one: tuple[str, int], other: tuple[str, int]) -> tuple[str, int]:
    """Two formulas with their values, made one, of which the value is a positive whole number."""
    (a, x), (b, y) = (one, other) if one[1] >= other[1] else (other, one)
    ways = ["+", "*", *("-" * (x > y)), *("/" * (x % y == 0 and y > 1))]
    sign = chance.pick(ways)
    value = {"+": x + y, "*": x * y, "-": x - y, "/": x // y}[sign]
    return f"({a} {sign} {b})", value


def _bare(formula: str) -> str:
    """Without the outer brackets."""
    return formula[1:-1] if formula.startswith("(") else formula
