"""Looking a key up in a list of pairs."""

from typing import Annotated

from annotated_types import Interval

from shoestring.method import method
from shoestring.task.chance import Chance
from shoestring.task.reading import last_whole_number
from shoestring.task.task import GeneratedTask, Problem

NAME = "recall"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@method(
    "task",
    kind="task",
    name=NAME,
    paper="Lost in the Middle: How Language Models Use Long Contexts, arXiv:2307.03172",
    claim="values are found best where their keys stand at the beginning or the end of a long list",
    cost="none",
)
class Recall(GeneratedTask):
    """Pairs of keys and values, then a key: 'ab: 17; qk: 93; ab:' has the answer 17.

    The paper's keys and values are random numbers of 128 bits, in JSON.

    pairs: before the question.
    letters: of a key.
    digits: of a value.
    """

    name = NAME
    instruction = "Each key is followed by its value. Answer with the value of the last key alone."
    stop = ("\n", ";")

    def __init__(
        self,
        *,
        pairs: Annotated[int, Interval(ge=1, le=10_000)] = 16,
        letters: Annotated[int, Interval(ge=1, le=8)] = 2,
        digits: Annotated[int, Interval(ge=1, le=18)] = 2,
    ) -> None:
        if pairs > len(LETTERS) ** letters // 2:
            raise ValueError(f"{NAME}: pairs = {pairs} are too many for keys of letters = {letters}")
        self.pairs, self.letters, self.digits = pairs, letters, digits
        self.most_tokens = digits + 4

    def draw(self, chance: Chance) -> Problem:
        """As `GeneratedTask.draw`."""
        found: dict[str, int] = {}
        while len(found) < self.pairs:
            key = "".join(chance.pick(LETTERS) for _ in range(self.letters))
            found.setdefault(key, chance.whole(10 ** (self.digits - 1) if self.digits > 1 else 0, 10**self.digits - 1))
        asked = chance.pick(list(found))
        words = "".join(f"{key}: {value}; " for key, value in found.items())
        return Problem("", f"{words}{asked}:", {"place": list(found).index(asked)}, str(found[asked]))

    def extract(self, problem: Problem, text: str) -> str | None:
        """The last number of the text, where it is whole."""
        return last_whole_number(text)
