"""`shoestring report`: one page about one run, or several side by side."""

from collections.abc import Sequence
from pathlib import Path

from shoestring.cli.arguments import Arguments
from shoestring.errors import printable
from shoestring.report.page import write_report


def run(words: Sequence[str]) -> int:
    parser = Arguments("report", "Draw a run's page again from its files; several runs are laid over one another.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: report.html in the first run, or here for several)"
    )
    found = parser.read(words)
    print(printable(str(write_report(found.runs, found.out))))
    return 0
