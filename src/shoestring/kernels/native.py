"""The native library: found beside this file, loaded once, spoken to through its C functions."""

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from shoestring.errors import ShoestringError

LIBRARY = Path(__file__).parent / "library" / "shoestring_kernels.so"
"""Where `setup.py` has it built."""

INTERFACE = 9
"""Of the C functions; the library says which it was built with."""

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class RowsOfPass(Protocol):
    """Rows of a pass: the address of `count` of them, with so many new tokens in all. See `kernels.attention.Rows`."""

    count: int
    tokens: int

    @property
    def address(self) -> int: ...


@dataclass(frozen=True)
class Library:
    """kernels: the number of each kernel that this processor can run, by name, the slowest first."""

    kernels: dict[str, int]
    loaded: ctypes.CDLL

    def ternary(self, kernel: int, layout: int, x: Tensor, packed: Tensor, scales: Tensor, rows: int) -> Tensor:
        """x [tokens, columns], packed, scales [rows, groups], all contiguous and checked -> [tokens, rows]."""
        tokens, columns = x.shape
        out = torch.empty(tokens, rows)
        self._must_work(
            self.loaded.shoestring_ternary_matmul(
                kernel,
                layout,
                torch.get_num_threads(),
                x.data_ptr(),
                tokens,
                columns,
                packed.data_ptr(),
                rows,
                scales.data_ptr(),
                scales.shape[1],
                out.data_ptr(),
            )
        )
        return out

    def integer(self, kernel: int, bits: int, x: Tensor, weights: Tensor, scales: Tensor, rows: int) -> Tensor:
        """x [tokens, columns], weights of `bits` bits, scales [rows, 1], all contiguous and checked -> [tokens, rows]."""
        tokens, columns = x.shape
        out = torch.empty(tokens, rows)
        self._must_work(
            self.loaded.shoestring_integer_matmul(
                kernel,
                bits,
                torch.get_num_threads(),
                x.data_ptr(),
                tokens,
                columns,
                weights.data_ptr(),
                rows,
                scales.data_ptr(),
                out.data_ptr(),
            )
        )
        return out

    def grouped(self, kernel: int, bits: int, x: Tensor, packed: Tensor, rows: int) -> Tensor:
        """x [tokens, columns], packed in groups of 32 columns, contiguous and checked -> [tokens, rows]."""
        tokens, columns = x.shape
        out = torch.empty(tokens, rows)
        addresses = x.data_ptr(), tokens, columns, packed.data_ptr(), rows, out.data_ptr()
        self._must_work(self.loaded.shoestring_grouped_matmul(kernel, bits, torch.get_num_threads(), *addresses))
        return out

    def grouped_rows(self, bits: int, packed: Tensor, rows: int, columns: int, which: Tensor) -> Tensor | None:
        """Rows `which` [n] int64 of a packed matrix, contiguous and checked -> [n, columns]; None: there is no such row."""
        out = torch.empty(len(which), columns)
        addresses = packed.data_ptr(), rows, columns, which.data_ptr(), len(which), out.data_ptr()
        return None if self.loaded.shoestring_grouped_rows(bits, *addresses) else out

    def decode(
        self,
        kernel: int,
        decoder: ctypes.Structure,
        held: int,
        states: int,
        apart: bool,
        rows: RowsOfPass,
        cos: Tensor,
        sin: Tensor,
        x: Tensor,
        asked: Tensor | None,
    ) -> None:
        """x [tokens, width] through all layers of a decoder (`kernels.decoder`), in place; everything is checked.

        held: the address of all layers' keys and values. states: of those that keep others. apart: of one row after the other.
        asked: where queries are left; None: nowhere.
        """
        self._must_work(
            self.loaded.shoestring_decode(
                kernel,
                torch.get_num_threads(),
                ctypes.addressof(decoder),
                held,
                states,
                apart,
                rows.address,
                rows.count,
                rows.tokens,
                cos.data_ptr(),
                sin.data_ptr(),
                x.data_ptr(),
                None if asked is None else asked.data_ptr(),
            )
        )

    def matmul(self, kernel: int, matrix: ctypes.Structure, x: Tensor, out: Tensor) -> None:
        """out [tokens, rows] = x [tokens, columns] times a matrix of `kernels.decoder`; everything is checked."""
        addresses = ctypes.addressof(matrix), x.data_ptr(), len(x), out.data_ptr()
        self._must_work(self.loaded.shoestring_matmul(kernel, torch.get_num_threads(), *addresses))

    def attend(
        self, kernel: int, heads: ctypes.Structure, held: int, rows: RowsOfPass, queries: Tensor, out: Tensor
    ) -> None:
        """Attention of a pass (`kernels.attention`); everything is checked.

        held: the address of the layer's keys and values.
        """
        asked = self._asked(kernel, heads, held, rows, queries)
        self._must_work(self.loaded.shoestring_attend(*asked, out.data_ptr()))

    def looks(
        self, kernel: int, heads: ctypes.Structure, held: int, rows: RowsOfPass, queries: Tensor, out: Tensor
    ) -> None:
        """What the queries of a pass look at, put to `out`; the rest as `attend` takes it."""
        asked = self._asked(kernel, heads, held, rows, queries)
        self._must_work(self.loaded.shoestring_looks(*asked, out.shape[2], out.data_ptr()))

    @staticmethod
    def _asked(kernel: int, heads: ctypes.Structure, held: int, rows: RowsOfPass, queries: Tensor) -> tuple[int, ...]:
        """What functions about the queries of a pass begin with."""
        of_queries = queries.data_ptr(), queries.stride(0), queries.stride(1)
        threads, shape = torch.get_num_threads(), ctypes.addressof(heads)
        return kernel, threads, shape, held, rows.address, rows.count, *of_queries

    def borrow_threads(self, lend: bool) -> bool:
        """Use the threads of torch's OpenMP runtime from now on (`lend`), or the library's own. Whether the former are in use.

        Two sets of threads on the same cores take them from each other, as those of OpenMP look for work for milliseconds
        after their last. torch's runtime is the one beside its own libraries, already loaded; where there is none (another
        build of torch), the library's own threads stay. A forked child has its own in any case.
        """
        run = _openmp() if lend else None
        self.loaded.shoestring_borrow_threads(run)
        return run is not None

    @staticmethod
    def _must_work(status: int) -> None:
        if status:
            raise ShoestringError("no memory is left for what the native library computes")


def _openmp() -> int | None:
    """The address of `GOMP_parallel` in the OpenMP runtime that torch has loaded; None where it has none of that kind."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            runtime = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)  # never a second one
            return ctypes.cast(runtime.GOMP_parallel, _POINTER).value
        except (OSError, AttributeError):
            continue  # not loaded, or not such a runtime
    return None


def load(path: Path | None = None) -> Library:
    """The library at `path`, by default `LIBRARY`. Raises: ShoestringError, saying why there is none."""
    path = path or LIBRARY
    if not path.exists():
        raise ShoestringError("the native library was not built, as by an install without a C++ compiler")
    try:
        loaded = ctypes.CDLL(str(path))
        found = loaded.shoestring_interface()
    except (OSError, AttributeError) as error:
        raise ShoestringError(f"the native library cannot be loaded: {error}") from None
    if found != INTERFACE:
        raise ShoestringError("the native library was built from other sources than these: install again")
    loaded.shoestring_kernel.restype = ctypes.c_char_p
    loaded.shoestring_kernel.argtypes = [_INT]
    loaded.shoestring_ternary_matmul.argtypes = [
        *(_INT, _INT, _INT, _POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER, _LONG, _POINTER),
    ]
    loaded.shoestring_integer_matmul.argtypes = [
        *(_INT, _INT, _INT, _POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER),
    ]
    loaded.shoestring_grouped_matmul.argtypes = [
        *(_INT, _INT, _INT, _POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER),
    ]
    loaded.shoestring_grouped_rows.argtypes = [_INT, _POINTER, _LONG, _LONG, _POINTER, _LONG, _POINTER]
    loaded.shoestring_decode.argtypes = [
        *(
            _INT,
            _INT,
            _POINTER,
            _POINTER,
            _POINTER,
            _INT,
            _POINTER,
            _LONG,
            _LONG,
            _POINTER,
            _POINTER,
            _POINTER,
            _POINTER,
        ),
    ]
    loaded.shoestring_matmul.argtypes = [_INT, _INT, _POINTER, _POINTER, _LONG, _POINTER]
    loaded.shoestring_attend.argtypes = [
        *(_INT, _INT, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _LONG, _LONG, _POINTER),
    ]
    loaded.shoestring_looks.argtypes = [
        *(_INT, _INT, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _LONG, _LONG, _LONG, _POINTER),
    ]
    loaded.shoestring_borrow_threads.argtypes = [_POINTER]
    loaded.shoestring_borrow_threads.restype = None
    loaded.shoestring_large_pages.argtypes = [_POINTER, _LONG]
    loaded.shoestring_large_pages.restype = None
    kernels: dict[str, int] = {}
    number = 0
    while (name := loaded.shoestring_kernel(number)) is not None:
        if name:
            kernels[name.decode()] = number
        number += 1
    made = Library(kernels, loaded)
    made.borrow_threads(True)
    return made


@functools.cache
def library() -> Library | str:
    """The library, or why there is none."""
    try:
        return load()
    except ShoestringError as error:
        return str(error)
