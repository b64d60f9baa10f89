"""Files that are either the old one or the new one, never half of one: write beside, flush to disk, rename.

What is half written lies beside, as `.NAME.PID.tmp`, and is locked while its writer lives. What a killed writer left there
has no lock, and the next writer of the same name removes it.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    """Where this process writes what is to be at `path`, after what killed processes left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _claimed(make: Callable[[], int], path: Path) -> int:
    """The handle of what `make` makes and opens at `path`, locked: made again where another process has swept it up before
    it was locked. Where the file system has no locks it has none, and nothing is swept up."""
    while True:
        handle = make()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle)):
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass  # it is being removed, or has been
        except OSError:
            return handle
        os.close(handle)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half written in `folder`: of the file or folder `name`, or of any."""
    half = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.\d+\.tmp")
    try:
        found = [entry.name for entry in os.scandir(folder) if half.fullmatch(entry.name)]
    except OSError:
        return  # there is nothing, or nothing that may be looked at
    for each in found:
        left = folder / each
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # its writer may have ended with it, and begun another of that name, since it was opened here
                if os.path.samestat(os.stat(left, follow_symlinks=False), os.fstat(handle)):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(handle)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace `path` with `content` atomically; on any error the old file stands and no temporary file is left.

    mode: of the new file, less what the process's umask takes away.
    """
    temporary = _temporary(path)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(_claimed(lambda: os.open(temporary, flags, mode), temporary), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


@contextmanager
def file(path: Path) -> Iterator[Path]:
    """Let the block write a temporary file, by its name, and rename it to `path` at the end; on any error the old file stands."""
    temporary = _temporary(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = _claimed(lambda: os.open(temporary, flags), temporary)
    try:
        yield temporary
        os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    _sync_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode())


@contextmanager
def directory(path: Path) -> Iterator[Path]:
    """Fill a temporary directory and rename it to `path` at the end; on any error nothing appears at `path`.

    `path` must not exist, or must be empty: a directory cannot be replaced atomically.
    """
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)

    def make() -> int:
        while True:
            temporary.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # swept up in between
                return os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)

    handle = _claimed(make, temporary)
    try:
        yield temporary
        for child in temporary.rglob("*"):
            if child.is_file():
                with open(child, "rb") as file:
                    os.fsync(file.fileno())
        _sync_directory(temporary)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(handle)
    _sync_directory(path.parent)
