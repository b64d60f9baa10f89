"""The command line within the process of a case."""

import contextlib
import io
from collections.abc import Sequence

from shoestring.cli.main import main
from shoestring.errors import ShoestringError


def command(words: Sequence[object]) -> str:
    """What `shoestring WORDS` prints.

    Raises: ShoestringError of what it says on standard error, where its exit status is not 0; AssertionError where that is
    not one line that begins with `shoestring: `. What the program does not catch goes on as it is.
    """
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stopped:  # argparse
            status = stopped.code if isinstance(stopped.code, int) else 1
            if status == 2:
                raise ShoestringError(errors.getvalue().strip().rpartition("\n")[2]) from None
    if status:
        said = errors.getvalue().strip()
        last = said.rpartition("\n")[2]
        assert last.startswith("shoestring: "), f"exit status {status} and no line of an error: {said[-500:]!r}"
        raise ShoestringError(last)
    return output.getvalue()
