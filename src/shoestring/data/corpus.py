"""Where text comes from: a corpus is a stream of documents with a cheap stamp that changes when its files do."""

import glob
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from shoestring.data.config import TextOptions
from shoestring.errors import UsageError, did_you_mean
from shoestring.method import find, methods


class Corpus(Protocol):
    """Documents in an order that does not change.

    A method of kind 'corpus' makes one from what follows its name and `:`, and from the options of its text.
    """

    def stamp(self) -> str:
        """A name for the present state of the corpus, had without reading it; see `stamp_files` for what is trusted."""

    def documents(self) -> Iterator[str]:
        """The documents, never an empty one, a bounded amount in memory. What was left out is logged at their end."""


def open_corpus(where: str, text: TextOptions | None = None) -> Corpus:
    """The corpus a recipe names: `python-stdlib`, `hf:NAME[:config]`, any other registered corpus, or a path or glob.

    text: how its text is found and decoded; None: the defaults.

    Raises: UsageError where there is no such corpus.
    """
    text = text or TextOptions()
    scheme, _, rest = where.partition(":")
    known = {card.name for card in methods("data", "corpus")}
    path = Path(where).expanduser()
    if scheme in known:
        corpus: Corpus = find("data", scheme, "corpus").target(rest, text)
        return corpus
    if not where:
        raise UsageError("data.corpus is empty: name a corpus, a folder or a file")
    if not path.exists() and not glob.has_magic(where):
        raise UsageError(
            f"no corpus '{where}': no such file or folder, nor a corpus of that name ({did_you_mean(where, known)})"
        )
    files: Corpus = find("data", "files", "corpus").target(where, text)
    return files


def own_prompt(where: str) -> str | None:
    """What a corpus of known content gives as its `PROMPT`, for a model of it to go on from; None of any other."""
    scheme = where.partition(":")[0]
    if scheme not in {card.name for card in methods("data", "corpus")}:
        return None
    return getattr(find("data", scheme, "corpus").target, "PROMPT", None)


def stamp_files(paths: Iterable[Path]) -> str:
    """A digest of the absolute paths, sizes, and times of last modification and change of files.

    Trusted: that a file whose size and both times (in nanoseconds) are as they were has the content it had. Restoring
    the modification time does not fool it, since the change time still moves; setting the machine's clock back may.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        digest.update(
            f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ctime_ns}\n".encode(
                errors="surrogateescape"
            )
        )
    return digest.hexdigest()
