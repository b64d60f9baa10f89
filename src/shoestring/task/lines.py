"""Tasks whose problems stand in a file of JSON lines."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from shoestring.errors import UsageError
from shoestring.json_files import Row, read_lines
from shoestring.task.chance import Chance
from shoestring.task.task import SPLITS, Problem, Split, Task, named, split_of

Whose = Literal["train", "tuning", "test", "hashed"]
"""The split that all lines of a file are in, or 'hashed': a tenth 'test', a tenth 'tuning', the rest 'train'."""


class ListedTask(Task):
    """A task that takes its problems from a file.

    A line may have a key 'split', which goes before what is said of the file. Of lines with equal questions and choices the
    first counts.
    """

    def __init__(self, name: str, path: str, split: Whose, make: Callable[[Row], Problem]) -> None:
        """name: of the task. path: of the file. split: of lines that do not say it.
        make: a problem of a line's object; it raises ValueError, in a few words, where there is none in it.

        Raises: UsageError where the file is missing or a line is no problem, ShoestringError where it is damaged.
        """
        if not Path(path).is_file():
            raise UsageError(f"no such file: {path}")
        self._problems: dict[str, tuple[Split, Problem]] = {}
        for number, row in read_lines(Path(path)):
            try:
                problem = named(name, make(row))
                chosen = _split(row.get("split", split), problem)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from None
            self._problems.setdefault(problem.id, (chosen, problem))
        if not self._problems:
            raise UsageError(f"{path} holds no problems")

    def problems(self, split: Split, seed: int, count: int) -> list[Problem]:
        """As `Task.problems`."""
        own = [problem for chosen, problem in self._problems.values() if chosen == split]
        return Chance(f"lines {seed}").shuffled(own)[:count]


def _split(asked: Any, problem: Problem) -> Split:
    if asked == "hashed":
        return split_of(problem.prompt)
    for split in SPLITS:
        if asked == split:
            return split
    raise ValueError(f"'split' is one of {', '.join(SPLITS)}")


def text_of(row: Row, *keys: str) -> str:
    """The text that stands under the first of these keys which the row has. Raises: ValueError where there is none."""
    for key in keys:
        if key in row:
            if isinstance(row[key], str) and row[key].strip():
                return str(row[key]).rstrip()
            raise ValueError(f"'{key}' is not text")
    raise ValueError(f"'{keys[0]}' is missing")
