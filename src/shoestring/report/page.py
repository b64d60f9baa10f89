"""Writing the page: one HTML file that needs nothing else, the same bytes for the same run files."""

from collections.abc import Sequence
from pathlib import Path

from shoestring import __version__, atomic
from shoestring.errors import ShoestringError
from shoestring.report import contents
from shoestring.report.drawing import PALETTE
from shoestring.report.run_files import Run, read_runs


def render(runs: Sequence[Run]) -> str:
    """The HTML of a report on one run, or on several side by side."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("shoestring", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    alone = len(runs) == 1
    return templates.get_template("page.html").render(
        title=runs[0].name if alone else f"{len(runs)} runs side by side",
        single=alone,
        palette=PALETTE,
        version=__version__,
        **(contents.single(runs[0]) if alone else contents.several(runs)),
    )


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write report.html from the files of one run folder, or of several to set side by side; returns its path.

    The page is self-contained, and the same files always give the same bytes. output: a file, or a folder to put
    report.html in; by default the run's own folder, and for several runs the current one.
    Raises: UsageError when a folder is not a run; ShoestringError when a file is damaged or the page cannot be written.
    """
    read = read_runs(runs)
    if output is None:
        output = read[0].folder if len(read) == 1 else Path()
    if output.is_dir():
        output = output / "report.html"
    # a model may emit half of a surrogate pair, which no encoding has a place for
    content = render(read).encode("utf-8", errors="replace")
    try:
        atomic.write_bytes(output, content)
    except OSError as error:
        raise ShoestringError(f"{output} cannot be written: {error.strerror}") from None
    return output
