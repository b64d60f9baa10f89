"""The sides of ternary_cpu.py: one matrix product by our packed kernels, by torch in several precisions, by onnxruntime at 2 bits.

Every side has several copies of its matrix, together larger than the caches, and takes them in turn: what is timed is
reading weights from memory, as a model with many layers does.
"""

import importlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.errors import UsageError
from shoestring.lowbit import kernels
from shoestring.lowbit.packing import grouped, integer, pack
from shoestring.lowbit.packing.grouped import GROUP


@dataclass(frozen=True)
class Shape:
    """rows: outputs. columns: inputs. tokens: how many input vectors a product takes at once."""

    rows: int
    columns: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}, {self.tokens} token{'s' * (self.tokens > 1)}"


@dataclass(frozen=True)
class Side:
    """calls: one for each copy of the matrix. products: that one call makes. bytes: of weights and scales that a product reads."""

    calls: Sequence[Callable[[], object]]
    products: int
    bytes: int


Build = Callable[[Shape, int], Side]
"""A side of a shape, with copies that take at least so many bytes together."""


def _copies(matrix: Tensor, rotate: int) -> list[Tensor]:
    """In large pages where the system gives them, on every side that takes tensors."""
    size = matrix.numel() * matrix.element_size()
    return kernels.gather([matrix] * max(1, -(-rotate // size)))


def ternary(layout: str) -> Build:
    """Ours, activations rounded to int8 within the timed call."""

    def build(shape: Shape, rotate: int) -> Side:
        codes = torch.randint(-1, 2, (shape.rows, shape.columns), dtype=torch.int8)
        x, scales = torch.randn(shape.tokens, shape.columns), torch.rand(shape.rows, 1)
        packed = _copies(pack(codes, layout), rotate)
        calls = [partial(kernels.matmul, x, p, scales, shape.rows, shape.columns, layout) for p in packed]
        return Side(calls, 1, packed[0].numel() + 4 * shape.rows)

    return build


def integers(bits: int) -> Build:
    """Ours, at 8 or 4 bits, as for an output head."""

    def build(shape: Shape, rotate: int) -> Side:
        low = -(2 ** (bits - 1))
        codes = torch.randint(low, -low, (shape.rows, shape.columns), dtype=torch.int8)
        x, scales = torch.randn(shape.tokens, shape.columns), torch.rand(shape.rows, 1)
        held = _copies(codes if bits == 8 else integer.pack(codes), rotate)
        calls = [partial(kernels.int_matmul, x, w, scales, shape.rows, shape.columns, bits) for w in held]
        return Side(calls, 1, held[0].numel() + 4 * shape.rows)

    return build


def groups(bits: int) -> Build:
    """Ours, at 4 or 8 bits in groups of 32 columns, activations rounded to int8 likewise within the timed call."""

    def build(shape: Shape, rotate: int) -> Side:
        rows, columns = shape.rows, shape.columns
        packed = torch.randint(0, 256, (grouped.packed_bytes(rows, columns, bits),), dtype=torch.uint8)
        x, held = torch.randn(shape.tokens, columns), _copies(packed, rotate)
        return Side([partial(kernels.grouped_matmul, x, w, rows, columns, bits) for w in held], 1, packed.numel())

    return build


def torch_int4(shape: Shape, rotate: int) -> Side:
    """torch's int4 weights in groups of 32 columns with bfloat16 activations (`_weight_int4pack_mm_for_cpu`)."""
    aten = torch.ops.aten
    codes = torch.randint(0, 16, (shape.rows, shape.columns), dtype=torch.int32)
    weights = _copies(aten._convert_weight_to_int4pack_for_cpu(codes, 1), rotate)
    x, scales = (
        torch.randn(*size).bfloat16()
        for size in ((shape.tokens, shape.columns), (shape.columns // GROUP, shape.rows, 2))
    )
    calls = [partial(aten._weight_int4pack_mm_for_cpu, x, w, GROUP, scales) for w in weights]
    return Side(calls, 1, weights[0].numel() + 2 * scales.numel())


def dense(dtype: torch.dtype) -> Build:
    """`F.linear` of activations and weights in this precision."""

    def build(shape: Shape, rotate: int) -> Side:
        x = torch.randn(shape.tokens, shape.columns).to(dtype)
        weights = _copies(torch.randn(shape.rows, shape.columns).to(dtype), rotate)
        return Side([partial(F.linear, x, w) for w in weights], 1, weights[0].numel() * weights[0].element_size())

    return build


def int8_dynamic(shape: Shape, rotate: int) -> Side:
    """torch's dynamically quantised linear layer: int8 weights, packed by its own library, activations rounded in the call."""
    x = torch.randn(shape.tokens, shape.columns)
    size = shape.rows * shape.columns
    layers = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this interface of torch is to move elsewhere
        for _ in range(max(1, -(-rotate // size))):
            whole = torch.nn.Sequential(torch.nn.Linear(shape.columns, shape.rows, bias=False))
            layers.append(torch.ao.quantization.quantize_dynamic(whole, {torch.nn.Linear}, dtype=torch.qint8)[0])
    return Side([partial(layer, x) for layer in layers], 1, size)


def int8_weights(shape: Shape, rotate: int) -> Side:
    """torch's int8 weights with bfloat16 activations (`_weight_int8pack_mm`)."""
    x, scales = torch.randn(shape.tokens, shape.columns).bfloat16(), torch.rand(shape.rows).bfloat16()
    weights = _copies(torch.randint(-127, 128, (shape.rows, shape.columns), dtype=torch.int8), rotate)
    return Side([partial(torch._weight_int8pack_mm, x, w, scales) for w in weights], 1, weights[0].numel())


def _needed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed: pip install onnxruntime onnx, or leave it out of --sides"
        ) from None


def onnx(bits: int, block: int) -> Build:
    """onnxruntime's MatMulNBits with weights of 2 or 4 bits, a scale for each `block` columns, int8 arithmetic (accuracy level 4).

    One session holds all copies, as a node each, and a call runs them all: nothing of a call's own cost is charged.
    """

    def build(shape: Shape, rotate: int) -> Side:
        runtime, package = _needed("onnxruntime"), _needed("onnx")
        helper, kind = package.helper, package.TensorProto
        blocks = -(-shape.columns // block)
        form = shape.rows, blocks, block * bits // 8
        codes = torch.randint(1, 4, form) * 0x55 if bits == 2 else torch.randint(0, 256, form)
        weights = codes.to(torch.uint8).numpy()
        size = weights.nbytes + 4 * shape.rows * blocks
        count = max(1, -(-rotate // size))
        initializers, nodes, outputs = [], [], []
        for number in range(count):
            scales = torch.rand(shape.rows * blocks).numpy()
            initializers += [
                package.numpy_helper.from_array(weights, f"w{number}"),
                package.numpy_helper.from_array(scales, f"s{number}"),
            ]
            attributes = {"K": shape.columns, "N": shape.rows, "bits": bits, "block_size": block, "accuracy_level": 4}
            inputs = ["x", f"w{number}", f"s{number}"]
            nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{number}"], domain="com.microsoft", **attributes))
            outputs.append(helper.make_tensor_value_info(f"y{number}", kind.FLOAT, [shape.tokens, shape.rows]))
        given = helper.make_tensor_value_info("x", kind.FLOAT, [shape.tokens, shape.columns])
        graph = helper.make_graph(nodes, "products", [given], outputs, initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "products.onnx"
            package.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
            session: Any = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        x = {"x": torch.randn(shape.tokens, shape.columns).numpy()}
        return Side([lambda: session.run(None, x)], count, size)

    return build


def sides(onnx_block: int) -> dict[str, Build]:
    """What builds each side, ours first."""
    return {
        "ternary2": ternary("ternary2"),
        "ternary1.6": ternary("ternary1.6"),
        "bf16": dense(torch.bfloat16),
        "fp32": dense(torch.float32),
        "int8_dynamic": int8_dynamic,
        "int8_weights": int8_weights,
        "onnx2": onnx(2, onnx_block),
        "onnx4": onnx(4, GROUP),
        "ours_int8": integers(8),
        "ours_int4": integers(4),
        "groups_int4": groups(4),
        "groups_int8": groups(8),
        "torch_int4": torch_int4,
    }
