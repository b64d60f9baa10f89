"""Folders that commands work in for long, a run's for one: held by one process at a time, and begun with the writing of one file.

Until that file is there nothing is worth keeping: what an attempt leaves that was stopped before is removed by the next.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shoestring import atomic
from shoestring.errors import ShoestringError, UsageError
from shoestring.locks import Held, hold

LOCK = "lock"
"""The file whose lock is held by the process that works in the folder."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    begins_with: the file with which there is something to go on with.
    prepared: what may be there before it.
    outputs: what others may have put there by then, whose it is.
    """

    begins_with: str
    prepared: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def begun(self, path: Path) -> bool:
        """Whether there is something to go on with at `path`."""
        return (path / self.begins_with).is_file()

    def unbegun(self, path: Path) -> bool:
        """Whether a folder holds nothing but what is left where an attempt was stopped before it had begun."""
        names = {entry.name for entry in path.iterdir()}
        mark = {LOCK, "ledger.jsonl"} & {LOCK, *self.prepared}  # earlier versions left no lock
        return names <= {LOCK, *self.prepared, *self.outputs} and not names.isdisjoint(mark)

    @contextmanager
    def created(self, path: Path, *, keep_outputs: bool = False) -> Iterator[None]:
        """While a new folder is this process's alone. What an earlier attempt left there is removed first, and where this one
        fails before it has begun, it leaves nothing.

        keep_outputs: others are at work in it already, whose files stay.
        Raises: UsageError when `path` holds something else, or another process is at work there; ShoestringError when it
        cannot be written.
        """
        made = not path.exists()
        self._refuse_taken(path)
        _make(path)
        with held(path):
            self._refuse_taken(path)  # another process may have been quicker
            for name in self.prepared if keep_outputs else (*self.prepared, *self.outputs):
                _remove(path / name)
            try:
                yield
            except BaseException:
                if not self.begun(path):
                    self._discard(path, made)
                raise

    def _refuse_taken(self, path: Path) -> None:
        if path.is_dir():
            if not any(path.iterdir()) or self.unbegun(path):
                return
        elif not path.exists():
            return
        raise UsageError(f"{path} exists and is not empty: name another with --out, or continue it with --resume")

    def _discard(self, path: Path, made: bool) -> None:
        for name in self.prepared:
            _remove(path / name)
        if made and all(entry.name == LOCK for entry in path.iterdir()):
            with suppress(OSError):
                (path / LOCK).unlink()
                path.rmdir()


@contextmanager
def held(path: Path, *, wait: str = "") -> Iterator[None]:
    """While this process alone works in a folder. What killed processes left half written there is removed.

    wait: said where another process is at work there, which is then waited for. Raises: UsageError where none is waited for.
    """
    try:
        with hold(path / LOCK, wait=wait):
            atomic.sweep(path)
            yield
    except Held as error:
        process = f" (process {error.holder})" if error.holder else ""
        raise UsageError(f"another process{process} is at work in {path}: wait for it, or stop it first") from None


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShoestringError(f"{path} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise ShoestringError(f"{path} is read-only")


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
