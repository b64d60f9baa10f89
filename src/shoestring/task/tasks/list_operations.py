"""Short programs on lists: copy, reverse, sort, replace."""

import re
from typing import Annotated, Literal

from annotated_types import Interval

from shoestring.method import method
from shoestring.task.chance import Chance
from shoestring.task.reading import last_line, whole_number
from shoestring.task.task import GeneratedTask, Problem

NAME = "list_operations"
OPERATIONS = ("copy", "reverse", "sort", "replace")


@method(
    "task",
    kind="task",
    name=NAME,
    paper="ParallelBench: Understanding the Trade-offs of Parallel Decoding in Diffusion LLMs, arXiv:2510.04767",
    claim="how much the tokens of the answer depend on each other is known for each operation",
    cost="none",
)
class ListOperations(GeneratedTask):
    """A list and what to do with it: 'reverse: 3 7 1 =' has the answer '1 7 3'.

    'copy' and 'reverse' write each item from its place; 'sort' needs all items for each; 'replace' takes a value for another.
    The same list is in the same split, whatever is done with it. The paper writes the lists otherwise, and has more operations.

    operation: one of them, or 'all' at random.
    length: items of a list at most.
    largest: an item at most; no two are the same.
    """

    name = NAME
    instruction = "Do what is said with the list. Answer with the new list alone, its items parted by spaces."

    def __init__(
        self,
        *,
        operation: Literal["copy", "reverse", "sort", "replace", "all"] = "all",
        length: Annotated[int, Interval(ge=2, le=64)] = 8,
        largest: Annotated[int, Interval(ge=63, le=999)] = 99,
    ) -> None:
        self.operation, self.length, self.largest = operation, length, largest
        self.most_tokens = 4 * length + 4

    def draw(self, chance: Chance) -> Problem:
        """As `GeneratedTask.draw`."""
        operation = chance.pick(OPERATIONS) if self.operation == "all" else self.operation
        items = chance.some(range(self.largest + 1), chance.whole(2, self.length))
        said, made = operation, items
        if operation == "reverse":
            made = items[::-1]
        elif operation == "sort":
            made = sorted(items)
        elif operation == "replace":
            old, new = chance.pick(items), chance.whole(0, self.largest)
            said, made = f"replace {old} by {new}", [new if item == old else item for item in items]
        return Problem("", f"{said}: {_words(items)} =", {"items": items}, _words(made))

    def group(self, problem: Problem) -> str:
        """The items, in whatever order."""
        return _words(sorted(problem.data["items"]))

    def extract(self, problem: Problem, text: str) -> str | None:
        """The last line that is not empty, where it is a list: numbers parted by spaces or commas, in brackets or not."""
        line = last_line(text)
        inner = line[1:-1] if line[:1] + line[-1:] == "[]" else line
        items = [whole_number(item) for item in re.split(r"\s*,\s*|\s+", inner.strip())]
        return None if None in items else " ".join(str(item) for item in items)


def _words(items: list[int]) -> str:
    return " ".join(map(str, items))
