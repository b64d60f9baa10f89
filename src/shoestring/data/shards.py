"""Flat arrays of numbers on disk: little-endian, no header, in files of bounded size, each with its checksums."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoestring.errors import ShoestringError

SHARD_ITEMS = 1 << 27
"""Numbers in a full shard: 256 MiB of uint16."""

EDGE = 4096
"""Bytes at each end of a shard that are checked whenever it is opened."""


@dataclass(frozen=True)
class Shard:
    """A file of numbers as its manifest tells it.

    items: how many numbers. sha256: of the whole file. edges: BLAKE2b of its first and last 4096 bytes.
    """

    file: str
    items: int
    sha256: str
    edges: str


class ShardWriter:
    """Writes an array of unknown length, a piece at a time, as `NAME-00000.bin`, `NAME-00001.bin` ..."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, limit: int = SHARD_ITEMS) -> None:
        self.folder, self.name, self.dtype, self.limit = folder, name, dtype.newbyteorder("<"), limit
        self.items = 0
        self._shards: list[Shard] = []
        self._open()

    def _open(self) -> None:
        self._path = self.folder / f"{self.name}-{len(self._shards):05d}.bin"
        self._file = open(self._path, "wb")  # noqa: SIM115, closed by `_finish`
        self._held, self._sha256 = 0, hashlib.sha256()

    def _finish(self) -> None:
        self._file.close()
        self._shards.append(Shard(self._path.name, self._held, self._sha256.hexdigest(), _edges(self._path)))

    def append(self, values: np.ndarray) -> None:
        self.items += len(values)
        while len(values):
            if self._held == self.limit:
                self._finish()
                self._open()
            part, values = np.split(values, [self.limit - self._held])
            content = part.astype(self.dtype, casting="same_kind").tobytes()
            self._file.write(content)
            self._sha256.update(content)
            self._held += len(part)

    def close(self) -> tuple[Shard, ...]:
        """Finish the last shard; all of them, in order, an empty array being one empty shard."""
        self._finish()
        return tuple(self._shards)


def open_shard(folder: Path, shard: Shard, dtype: np.dtype) -> np.ndarray:
    """The memory-mapped numbers of a shard, its length and both ends checked. Raises: ShoestringError."""
    path, dtype = folder / shard.file, dtype.newbyteorder("<")
    expected = shard.items * dtype.itemsize
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShoestringError(f"shard {path} cannot be read: {error.strerror}") from None
    if found != expected:
        raise ShoestringError(f"shard {path} is {found} bytes long, not {expected}: {_ADVICE}")
    if _edges(path) != shard.edges:
        raise ShoestringError(f"shard {path} is not the one its manifest describes: {_ADVICE}")
    if not shard.items:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r")


def verify_shard(folder: Path, shard: Shard) -> None:
    """Check every byte of a shard. Raises: ShoestringError."""
    with open(folder / shard.file, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            raise ShoestringError(f"shard {folder / shard.file} is damaged: {_ADVICE}")


_ADVICE = "delete its folder and it will be prepared anew"


def _edges(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(EDGE)
        file.seek(max(0, path.stat().st_size - EDGE))
        return hashlib.blake2b(head + file.read(EDGE), digest_size=16).hexdigest()
