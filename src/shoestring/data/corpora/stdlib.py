"""The source of Python's own standard library: a corpus every machine that runs this already has."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from shoestring.data.config import TextOptions
from shoestring.data.corpora.files import read_all, walk
from shoestring.data.corpus import stamp_files
from shoestring.data.reading import TextReading
from shoestring.errors import UsageError
from shoestring.method import method, methods

LEFT_OUT = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"})
"""Folders not read: what was installed, and the tests (17 of 31 MB, and absent from many Linux packages of Python)."""


@method(
    "data",
    kind="corpus",
    name="python-stdlib",
    claim="about 12 MB of code and English in 733 files on CPython 3.11, with nothing to download",
    cost="a walk over the files, tens of milliseconds",
)
class PythonStdlib:
    """The .py files of the standard library of the Python that runs this.

    Left out: tests, installed packages, files that are not UTF-8 (test data of lib2to3), and the build's own settings
    (`_sysconfigdata*` and `config-*`), which differ from one machine to the next. Its
    encoding is known, so that of `text` nothing is heeded. The text is another with every
    version of Python, so compare figures within one. Raises: UsageError where the library is not on disk as source.
    """

    PROMPT = "def main("
    """What a model of this text may be asked to go on from."""

    def __init__(self, where: str, text: TextOptions) -> None:
        if where:
            raise UsageError(f"'python-stdlib' takes nothing after its name, not ':{where}'")
        if text.control_field:
            raise UsageError(
                f"'python-stdlib' is plain text, which has no field '{text.control_field}' (data.control_field)"
            )
        folder = Path(sysconfig.get_path("stdlib"))
        self.paths = [path for path in walk(folder, LEFT_OUT) if path.suffix == ".py" and not _of_the_build(path)]
        if not self.paths:
            raise UsageError(f"this Python has no standard library source in {folder}: name a folder of text instead")

    def stamp(self) -> str:
        return stamp_files(self.paths)

    def documents(self) -> Iterator[str]:
        return read_all(self.paths, TextReading(), {card.name: card for card in methods("data", "format")})


def _of_the_build(path: Path) -> bool:
    return path.name.startswith("_sysconfigdata") or path.parent.name.startswith("config-")
