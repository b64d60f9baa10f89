"""Where the lines go that the package says through `logging`: to a file, or to a list that keeps them back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, TypeVar

H = TypeVar("H", bound=logging.Handler)

NAME = "shoestring"
"""The logger above those of all modules."""


def log_to(stream: TextIO) -> None:
    """Write every line to a stream, from now on: for a process whose output is a file. Warnings of others go there too."""
    logging.basicConfig(stream=stream, format="%(message)s", level=logging.WARNING)
    logging.getLogger(NAME).setLevel(logging.INFO)


class KeptLines(logging.Handler):
    """Keeps the lines that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def attached(handler: H, name: str = NAME) -> Iterator[H]:
    """Give a handler the lines of a logger, at INFO and above, and nobody else. What was before is put back afterwards."""
    logger = logging.getLogger(name)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@contextmanager
def held_back(name: str) -> Iterator[list[str]]:
    """Keep the lines of a logger from being shown, for what is said elsewhere or again. Gives them as a list that grows."""
    with attached(KeptLines(), name) as kept:
        yield kept.lines
