"""Sudoku of four by four."""

import re
from functools import cache
from itertools import permutations
from typing import Annotated

from annotated_types import Interval

from shoestring.method import method
from shoestring.task.chance import Chance
from shoestring.task.task import GeneratedTask, Problem, Score

NAME = "sudoku"
SIZE, BOX = 4, 2
DIGITS = "1234"
Grid = tuple[str, ...]

ROW = r"[1-4.](?:[ \t]?[1-4.]){3}"
GRID = re.compile(rf"(?<![0-9.])(?:{ROW}[ \t]*[/\n][ \t]*){{3}}{ROW}(?![0-9])")
"""A grid in a text. Its rows are parted by '/' or by line ends, its places by one space or none."""


@method(
    "task",
    kind="task",
    name=NAME,
    paper="To Backtrack or Not to Backtrack: When Sequential Search Limits Model Reasoning, arXiv:2504.07052",
    claim="searching with backtracking beats many independent tries on Sudoku",
    cost="none",
)
class Sudoku(GeneratedTask):
    """A grid of four by four to fill: '1.34/.412/2143/432. =' has the answer '1234/3412/2143/4321'.

    Each row, each column and each box of two by two holds 1 to 4. Any grid that keeps the digits given is right, where there
    are several. Puzzles with the same full grid, of which there are 288, are in the same split. The paper's grids are larger.

    holes: places without a digit.
    """

    name = NAME
    instruction = (
        "Fill the points so that each row, each column and each box of two by two holds 1, 2, 3 and 4. "
        "Answer with the whole grid alone, written as it is here."
    )
    most_tokens = 24

    def __init__(self, *, holes: Annotated[int, Interval(ge=1, le=12)] = 6) -> None:
        self.holes = holes

    def draw(self, chance: Chance) -> Problem:
        """As `GeneratedTask.draw`."""
        grid = "/".join(chance.pick(grids()))
        places = [place for place, each in enumerate(grid) if each != "/"]
        hidden = set(chance.some(places, self.holes))
        given = "".join("." if place in hidden else each for place, each in enumerate(grid))
        return Problem("", f"{given} =", {"given": given}, grid)

    def group(self, problem: Problem) -> str:
        """The full grid that it was made from."""
        return problem.answer or ""

    def extract(self, problem: Problem, text: str) -> str | None:
        """The last grid in the text, in rows parted by '/' or by line ends; None where there is none."""
        found = GRID.findall(text)
        return "/".join(re.findall(r"[1-4.]{4}", "".join(found[-1].split()))) if found else None

    def judge(self, problem: Problem, answer: str) -> Score:
        """Whether the grid is full, keeps what was given, and holds each digit once in every row, column and box."""
        if "." in answer:
            return Score(0.0, "not full")
        if any(given not in (".", found) for given, found in zip(problem.data["given"], answer, strict=True)):
            return Score(0.0, "a digit that was given is another")
        grid = tuple(answer.split("/"))
        return Score(1.0) if solved(grid) else Score(0.0, "a digit stands twice in a row, a column or a box")


def solved(grid: Grid) -> bool:
    """Whether a full grid, four rows of four digits, breaks no rule."""
    columns = ["".join(row[place] for row in grid) for place in range(SIZE)]
    boxes = [
        "".join(grid[top + row][left : left + BOX] for row in range(BOX))
        for top in range(0, SIZE, BOX)
        for left in range(0, SIZE, BOX)
    ]
    return all(set(each) == set(DIGITS) for each in (*grid, *columns, *boxes))


@cache
def grids() -> tuple[Grid, ...]:
    """All full grids, 288, in order."""
    rows = ["".join(each) for each in permutations(DIGITS)]

    def fits(above: Grid, row: str) -> bool:
        if any(row[place] == other[place] for other in above for place in range(SIZE)):
            return False
        return len(above) % BOX == 0 or all(
            set(above[-1][left : left + BOX]).isdisjoint(row[left : left + BOX]) for left in range(0, SIZE, BOX)
        )

    found: list[Grid] = [()]
    for _ in range(SIZE):
        found = [(*above, row) for above in found for row in rows if fits(above, row)]
    return tuple(found)
