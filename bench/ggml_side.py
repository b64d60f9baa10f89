"""The side of llama.cpp in int4_cpu.py: one product in Q4_0 by its library ggml, through its C interface.

Weights lie as llama.cpp puts them when it loads a model: repacked, where the processor has a kernel for that. One graph holds a
product with each copy, and a call runs them all: nothing of a call's own cost is charged. The library is that of the package
llama-cpp-python, or in the folder that the environment variable GGML_FOLDER names.
"""

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from ternary_sides import Shape, Side

from shoestring.errors import UsageError

F32, Q4_0, GROUP = 0, 2, 32
OVERHEAD = 1 << 20
"""Bytes for what a context knows of tensors and of a graph."""


SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
"""In place of what ggml says of each matrix that it repacks."""


class _Init(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The functions, of whichever of its libraries has them. Raises: UsageError where there are none."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("llama_cpp")
        beside = Path(found.origin).parent / "lib" if found is not None and found.origin else None
        folder = os.environ.get("GGML_FOLDER") or beside
        files = [Path(folder) / f"lib{name}.so" for name in ("ggml-base", "ggml-cpu", "ggml")] if folder else []
        if not files or not all(file.exists() for file in files):
            raise UsageError(
                "ggml is not there: pip install llama-cpp-python, or name the folder of libggml.so in GGML_FOLDER"
            )
        self._libraries = [ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL) for file in files]
        self.log_set(SILENT, None)

    def __getattr__(self, name: str) -> Any:
        """A function whose arguments are pointers and 64-bit numbers, and whose result is a pointer."""
        for library in self._libraries:
            function = getattr(library, f"ggml_{name}", None)
            if function is not None:
                function.restype = ctypes.c_void_p
                return function
        raise UsageError(f"this ggml has no ggml_{name}: install another version of llama-cpp-python")

    def context(self) -> ctypes.c_void_p:
        """One that knows of tensors, whose numbers lie elsewhere."""
        return self._pointer(self.init(_Init(OVERHEAD, None, True)))

    def tensor(self, context: ctypes.c_void_p, kind: int, columns: int, rows: int) -> ctypes.c_void_p:
        return self._pointer(self.new_tensor_2d(context, kind, ctypes.c_int64(columns), ctypes.c_int64(rows)))

    def put(self, tensor: ctypes.c_void_p, numbers: torch.Tensor) -> None:
        size = ctypes.c_size_t(numbers.nbytes)
        self.backend_tensor_set(tensor, ctypes.c_void_p(numbers.data_ptr()), ctypes.c_size_t(0), size)

    def place_of_weights(self, backend: ctypes.c_void_p) -> ctypes.c_void_p:
        """The kind of buffer that repacks what is put into it; the plain one where there is none."""
        device = self._pointer(self.backend_get_device(backend))
        registry = self._pointer(self.backend_dev_backend_reg(device))
        address = self.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if address:
            kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
            if kinds and kinds[0]:
                return ctypes.c_void_p(kinds[0])
        return self._pointer(self.backend_get_default_buffer_type(backend))

    @staticmethod
    def _pointer(address: int | None) -> ctypes.c_void_p:
        if not address:
            raise UsageError("ggml made nothing of what it was asked for")
        return ctypes.c_void_p(address)


def q4_0(shape: Shape, rotate: int) -> Side:
    """llama.cpp's Q4_0: groups of 32 columns with a scale in float16, activations rounded to int8 within the timed call."""
    ggml = Ggml()
    size = shape.rows * shape.columns // GROUP * (2 + GROUP // 2)
    count = max(1, -(-rotate // size))
    backend = ctypes.c_void_p(ggml.backend_cpu_init())
    ggml.backend_cpu_set_n_threads(backend, torch.get_num_threads())
    held, used = ggml.context(), ggml.context()
    weights = [ggml.tensor(held, Q4_0, shape.columns, shape.rows) for _ in range(count)]
    ggml.backend_alloc_ctx_tensors_from_buft(held, ggml.place_of_weights(backend))
    x = ggml.tensor(used, F32, shape.columns, shape.tokens)
    graph = ctypes.c_void_p(ggml.new_graph(used))
    for matrix in weights:
        ggml.build_forward_expand(graph, ctypes.c_void_p(ggml.mul_mat(used, matrix, x)))
    ggml.backend_alloc_ctx_tensors(used, backend)
    groups = torch.empty(shape.rows * shape.columns // GROUP, 2 + GROUP // 2, dtype=torch.uint8)
    groups[:, :2] = torch.rand(len(groups), 1).half().view(torch.uint8)
    groups[:, 2:] = torch.randint(0, 256, (len(groups), GROUP // 2))
    for matrix in weights:
        ggml.put(matrix, groups)
    ggml.put(x, torch.randn(shape.tokens, shape.columns))

    def call() -> None:
        if ggml.backend_graph_compute(backend, graph):
            raise UsageError("ggml did not work out its graph")

    return Side([call], count, size)
