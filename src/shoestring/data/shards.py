"""Flat arrays of numbers on disk: little-endian, no header, in files of bounded size, each with its checksums."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from shoestring.errors import ShoestringError

SHARD_ITEMS = 1 << 27
"""Numbers in a full shard: 256 MiB of uint16."""

PIECE = 1 << 20
"""Bytes looked at together when a shard is checked: they stay in the processor's cache between two looks."""


@dataclass(frozen=True)
class Shard:
    """A file of numbers as its manifest tells it.

    items: how many numbers. sha256: of the whole file, which tells one dataset from another. xxh3: XXH3 of the whole file in 128
    bits, which finds damage several times as fast (`bench/integrity.py` measures it), and so whenever the file is opened.
    """

    file: str
    items: int
    sha256: str
    xxh3: str


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
        self._held, self._sha256, self._xxh3 = 0, hashlib.sha256(), xxhash.xxh3_128()

    def _finish(self) -> None:
        self._file.close()
        self._shards.append(Shard(self._path.name, self._held, self._sha256.hexdigest(), self._xxh3.hexdigest()))

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
            self._xxh3.update(content)
            self._held += len(part)

    def close(self) -> tuple[Shard, ...]:
        """Finish the last shard; all of them, in order, an empty array being one empty shard."""
        self._finish()
        return tuple(self._shards)


def open_shard(
    folder: Path, shard: Shard, dtype: np.dtype, look: Callable[[np.ndarray], None] = lambda piece: None
) -> np.ndarray:
    """The memory-mapped numbers of a shard, every byte of which is checked first.

    look: is given the numbers piece by piece as their checksum is made, while they are in the processor's cache: what it makes
    of them counts once they are known to be good.
    Raises: ShoestringError where the file is missing, cut short, damaged or another's.
    """
    path, dtype = folder / shard.file, dtype.newbyteorder("<")
    expected = shard.items * dtype.itemsize
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShoestringError(f"shard {path} cannot be read: {error.strerror}") from None
    if found != expected:
        raise ShoestringError(f"shard {path} is {found} bytes long, not {expected}: {ADVICE}")
    if not shard.items:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    try:
        numbers = np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise ShoestringError(f"shard {path} cannot be read: {error.strerror}") from None
    digest, step = xxhash.xxh3_128(), PIECE // dtype.itemsize
    for start in range(0, len(numbers), step):
        piece = numbers[start : start + step]
        digest.update(piece.data)
        look(piece)
    if digest.hexdigest() != shard.xxh3:
        raise ShoestringError(f"shard {path} is damaged: its checksum is not the one recorded: {ADVICE}")
    return numbers


ADVICE = "delete its folder and it will be prepared anew"
"""What to do about a damaged file of a cache."""
