"""Files on disk: a folder, a glob, or one file, in every format there is a reader for."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from shoestring.data.config import TextOptions
from shoestring.data.corpus import stamp_files
from shoestring.data.curated_folder import documents_of
from shoestring.data.opening import suffix
from shoestring.data.passages import PASSAGE
from shoestring.data.reading import NotText, TextReading
from shoestring.errors import UsageError
from shoestring.method import Card, method, methods

PASSAGES = 100
"""A text file that is a whole corpus is cut into about this many passages, so that a part of it can be held out."""


@method(
    "data",
    kind="corpus",
    name="files",
    claim="a folder (recursively), a glob or one file; a document is a file, a line or a row, by its format",
    cost="one look at every file; memory for a block of one",
)
class Files:
    """The files under a folder, or that a glob matches, sorted by path; or one file.

    The format goes by the suffix, `.gz` and `.zst` taken off: `.jsonl`, `.parquet`, and anything else is text. Where
    there are several files, what is not text is left out and counted. Under a folder, hidden files are not looked at,
    nor are folders marked as caches by a CACHEDIR.TAG; of a folder that `shoestring data` wrote, the kept documents are read.
    Raises: UsageError where there is no such file, none in the folder, or the only one is not text.
    """

    def __init__(self, where: str, text: TextOptions) -> None:
        self.text = text
        self.paths = find_files(where)

    def stamp(self) -> str:
        return stamp_files(self.paths)

    def documents(self) -> Iterator[str]:
        formats = {card.name: card for card in methods("data", "format")}
        reading = TextReading(self.text)
        if len(self.paths) == 1:
            return read_alone(self.paths[0], reading, formats)
        return read_all(self.paths, reading, formats)


def read_alone(path: Path, reading: TextReading, formats: dict[str, Card]) -> Iterator[str]:
    """The documents of the one file of a corpus; what of it was not read is logged."""
    card = formats.get(suffix(path), formats["text"])
    options = {}
    if card.name == "text":
        options["passage"] = min(max(path.stat().st_size // PASSAGES, 2048), PASSAGE)
    yield from reading.documents(card.target(path, reading, **options))
    reading.report()


def read_all(paths: Sequence[Path], reading: TextReading, formats: dict[str, Card]) -> Iterator[str]:
    """The documents of many files; those that are not text are left out; what was not read, and why, is logged."""
    for path in paths:
        card = formats.get(suffix(path), formats["text"])
        try:
            yield from reading.documents(card.target(path, reading))
        except NotText as error:
            reading.left_out.append(str(error))
    reading.report(len(paths))


def find_files(where: str) -> list[Path]:
    """The files a path or glob names, sorted by their path. Raises: UsageError where there are none."""
    path = Path(where).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = walk(documents_of(path))
        if not found:
            raise UsageError(f"folder '{where}' holds no files (hidden ones are not read)")
        return found
    if path.exists():
        raise UsageError(f"'{where}' is neither a file nor a folder")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = {file for match in matches for file in ([match] if match.is_file() else walk(match))}
    if not files:
        raise UsageError(f"no file matches '{where}'")
    return sorted(files, key=lambda file: file.as_posix())


def walk(folder: Path, skip: frozenset[str] = frozenset()) -> list[Path]:
    """The files under a folder, sorted by path, less hidden ones, caches, and folders whose name is in `skip`."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        if "CACHEDIR.TAG" in names:
            folders.clear()
            continue
        found += (Path(place, name) for name in names if not name.startswith("."))
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())
