"""Locks that end with the process that holds them, however it ends: the kernel keeps them, on a file that stays."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoestring.errors import ShoestringError

log = logging.getLogger(__name__)


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What a file system says that has no locks."""


class Held(ShoestringError):
    """Another process holds the lock. holder: its process id, or '' where that cannot be told."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"another process{f' ({holder})' if holder else ''} holds {path}")
        self.holder = holder


@contextmanager
def hold(path: Path, *, wait: str = "") -> Iterator[None]:
    """Hold the lock on the file at `path`, which is made where it is missing, and whose folder must be there.

    A process that was forked from the holder does not hold it. The file names the holder's process id, for people.
    wait: logged once where another process holds the lock, which is then waited for; '': it is not waited for. So is where
    the file system has no locks, and nothing keeps others away.
    Raises: Held; ShoestringError where the file cannot be opened: it is a symbolic link, for one.
    """
    handle = _acquired(path, wait)
    _own.add(handle)
    try:
        yield
    finally:
        if handle in _own:  # not in a forked child, which has let go of it
            _own.discard(handle)
            os.close(handle)


def _acquired(path: Path, wait: str) -> int:
    while True:
        handle = _opened(path)
        try:
            _lock(handle, path, wait)
            if not _is_still(
                path, handle
            ):  # its last holder has removed the file: the lock of no name keeps nobody away
                os.close(handle)
                continue
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        return handle


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        why = "it is a symbolic link: remove it" if error.errno == errno.ELOOP else error.strerror
        raise ShoestringError(f"{path} cannot be opened to be locked: {why}") from None


def _lock(handle: int, path: Path, wait: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise Held(path, _holder(handle)) from None
        log.warning(wait)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ShoestringError(f"{path} cannot be locked: {error.strerror}") from None
        log.warning(
            f"note: the file system of {path.parent} has no locks: see to it that no other process writes there"
        )


def _holder(handle: int) -> str:
    content = os.pread(handle, 20, 0).strip()
    return content.decode() if content.isdigit() else ""


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


_own: set[int] = set()
"""The handles of the locks that this process holds."""


def _let_go() -> None:
    """A forked child shares its parent's open files, and with them its locks, which would outlive the parent."""
    for handle in _own:
        os.close(handle)
    _own.clear()


os.register_at_fork(after_in_child=_let_go)
