"""`shoestring report`: one page about one run, or several side by side."""

from collections.abc import Sequence
from pathlib import Path

from shoestring.cli.arguments import Arguments
from shoestring.cli.json_output import add_json_flag, print_json
from shoestring.errors import printable
from shoestring.report.diagnosis import one_line
from shoestring.report.page import write_report
from shoestring.report.run_files import read_runs


def run(words: Sequence[str]) -> int:
    parser = Arguments("report", "Draw a run's page again from its files; several runs are laid over one another.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--out", type=Path, help="where to write (default: report.html in the first run, or here for several)"
    )
    add_json_flag(parser, "where the page is")
    found = parser.read(words)
    if found.json:
        print_json({"report": write_report(found.runs, found.out)})
        return 0
    print(printable(str(write_report(found.runs, found.out))))
    for run in read_runs(found.runs):
        if said := one_line(run):
            print(printable(f"{run.name}: {said}" if len(found.runs) > 1 else said))
    return 0
