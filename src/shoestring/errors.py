"""The two ways a command can end badly, each with one clear line and an exit status; and text that a terminal may be given."""

import difflib
from collections.abc import Iterable


def printable(text: str, keep: str = "") -> str:
    """A text in which each character that is none to see is escaped as Python writes it: a name, or a file's content, may hold
    what ends a line, moves a terminal's cursor or sets its title. keep: those left as they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


class ShoestringError(Exception):
    """Something failed while working: a full disk, a damaged checkpoint, a loss that is not finite. Exit status 1.

    As text it is one printable line, whatever names and contents its message quotes.
    """

    exit_status = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(ShoestringError):
    """What was asked for cannot be done as asked: an unknown key, a missing corpus, a budget of zero. Exit status 2."""

    exit_status = 2


def first_line(error: BaseException) -> str:
    """What an exception says, its first line, 200 characters at most: torch goes on for pages."""
    return str(error).partition("\n")[0][:200]


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest known name, or all of them where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else "nothing is known by any name here"
