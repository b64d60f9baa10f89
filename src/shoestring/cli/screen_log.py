"""What the package says through `logging`, on the screen of a command."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from shoestring.cli.screen import Screen
from shoestring.log_lines import KeptLines, attached

AT_THE_EDGE = ("shoestring.compare", "shoestring.launch.ladder", "shoestring.launch.launch", "shoestring.launch.way")
"""Those who conduct: their lines are not indented, what they have others do is."""


class _ScreenLines(KeptLines):
    """Prints each line, and keeps it. before: what is put before a line."""

    def __init__(self, screen: Screen, before: str) -> None:
        super().__init__()
        self.screen, self.before = screen, before

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        before = "" if record.name.startswith(AT_THE_EDGE) else self.before
        self.screen.print(f"{before}{record.getMessage()}", soft_wrap=True)


@contextmanager
def shown_on(screen: Screen, before: str = "  ") -> Iterator[list[str]]:
    """Print the package's lines on a screen while the context lasts.

    before: what is put before a line.
    Gives the lines without it, as a list that grows.
    """
    with attached(_ScreenLines(screen, before)) as shown:
        yield shown.lines
