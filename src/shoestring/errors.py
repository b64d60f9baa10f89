"""The two ways a command can end badly, each with one clear line and an exit status."""

import difflib
from collections.abc import Iterable


class ShoestringError(Exception):
    """Something failed while working: a full disk, a damaged checkpoint, a loss that is not finite. Exit status 1."""

    exit_status = 1


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
