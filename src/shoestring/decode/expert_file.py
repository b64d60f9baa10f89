"""The weights of experts in a file that is mapped into memory, from which they are read one at a time."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.errors import UsageError


class Stored(NamedTuple):
    """Where the experts of a layer lie. at: the first, in bytes. step: to the next one. shapes: of an expert's two matrices."""

    at: int
    step: int
    shapes: tuple[torch.Size, torch.Size]
    dtype: torch.dtype


class ExpertFile:
    """A file without a name, which ends with the process.

    The pages that are read lie in the system's file cache, which gives them up when memory is short; the process gives them back as
    soon as an expert was copied.

    folder: where it lies; empty: the system's folder for temporary files. Raises: UsageError where it cannot be made.
    """

    def __init__(self, folder: str = "") -> None:
        self.folder = folder
        try:
            self._handle, path = tempfile.mkstemp(prefix="shoestring-experts-", dir=folder or None)
            os.unlink(path)
        except OSError as error:
            raise self._refused(error) from None
        self._map: mmap.mmap | None = None
        self._end = 0
        self.layers: list[Stored] = []

    def add(self, stacks: Sequence[Tensor]) -> None:
        """Write the matrices of a layer's experts. stacks: two, [E, out, in]. Raises: UsageError where there is no room."""
        first, second = stacks
        size = sum(stack[0].nbytes for stack in stacks)
        step = (
            -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        )  # whole pages, so that one can be given back without its neighbours
        self.layers.append(Stored(self._end, step, (first[0].shape, second[0].shape), first.dtype))
        try:
            for expert in range(len(first)):
                at = self._end + expert * step
                for stack in stacks:
                    matrix = stack[expert].detach().cpu().contiguous()
                    at += self._write(matrix.view(torch.uint8).numpy().data.cast("B"), at)
            self._end += len(first) * step
            os.truncate(self._handle, self._end)
        except OSError as error:
            raise self._refused(error) from None

    def size(self, layer: int) -> int:
        """Bytes of an expert of a layer."""
        stored = self.layers[layer]
        return sum(shape.numel() for shape in stored.shapes) * stored.dtype.itemsize

    def read(self, layer: int, expert: int, into: Sequence[Tensor]) -> int:
        """Copy an expert's matrices. into: two tensors of their shapes and type, on any device. Returns: bytes read."""
        stored = self.layers[layer]
        if self._map is None:
            self._map = mmap.mmap(self._handle, self._end, flags=mmap.MAP_PRIVATE)
        start = at = stored.at + expert * stored.step
        for target, shape in zip(into, stored.shapes, strict=True):
            found = torch.frombuffer(self._map, dtype=stored.dtype, count=shape.numel(), offset=at)
            target.copy_(found.view(shape))
            at += shape.numel() * stored.dtype.itemsize
        self._map.madvise(mmap.MADV_DONTNEED, start, stored.step)
        return at - start

    def _write(self, view: memoryview, at: int) -> int:
        done = 0
        while done < len(view):
            done += os.pwrite(self._handle, view[done:], at + done)
        return done

    def _refused(self, error: OSError) -> UsageError:
        where = self.folder or tempfile.gettempdir()
        return UsageError(f"experts cannot be kept in {where}: {error.strerror}: set experts.folder")

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            os.close(handle)
