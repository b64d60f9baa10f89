"""Keys and values in a file that is mapped into memory."""

import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "decode",
    kind="cache store",
    name="disk",
    paper="FlexGen: High-Throughput Generative Inference of Large Language Models with a Single GPU, arXiv:2303.06865",
    claim="a cache that is kept on disk lets a machine serve models and batches that its memory cannot hold",
    cost="no memory that the system cannot take back; each pass reads the keys and values of its rows from the file",
)
class DiskStore:
    """Hold keys and values in files that are mapped into memory, in the model's type. What is read is what was written.

    The pages that are in use lie in the system's file cache, which gives them up when memory is short. So they are counted as
    elsewhere. The source moves blocks by a plan over GPU, memory and disk; here the system decides.

    folder: where the files lie; empty: the system's folder for temporary files. They have no name, and end with the process.
    """

    exact = True

    def __init__(self, *, folder: str = "") -> None:
        self.folder = folder

    def empty(self, places: int, heads: int, width: int, like: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.empty`. Raises: UsageError where the file cannot be made."""
        count = places * heads * width
        try:
            handle, path = tempfile.mkstemp(prefix="shoestring-cache-", dir=self.folder or None)
            try:
                os.truncate(handle, count * like.dtype.itemsize)
                mapped = torch.from_file(path, shared=True, size=count, dtype=like.dtype)
            finally:
                os.close(handle)
                os.unlink(path)  # the mapping keeps the file until it goes
        except OSError as error:
            where = self.folder or tempfile.gettempdir()
            raise UsageError(f"the cache cannot be kept in {where}: {error.strerror}: set cache.store.folder") from None
        return (mapped.view(places, heads, width),)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """As `CacheStore.encode`."""
        return (x,)

    def decode(self, codes: Sequence[Tensor], like: Tensor) -> Tensor:
        """As `CacheStore.decode`."""
        return codes[0].to(like.device)

    def readable(self, width: int) -> bool:
        """As `CacheStore.readable`."""
        return False

    def elsewhere(self, codes: Sequence[Tensor]) -> int:
        """All of it."""
        return sum(one.nbytes for one in codes)
