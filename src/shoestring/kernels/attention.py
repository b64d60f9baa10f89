"""Attention of the new tokens of rows to keys and values in blocks, without copying these.

The structures are those of native/attention.h.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.kernels.choice import in_use

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64

TYPES = (torch.float32, torch.bfloat16)
"""Of keys and values."""


class Side(ctypes.Structure):
    _fields_ = (("numbers", _POINTER), *((name, _LONG) for name in ("block_step", "token_step", "head_step")))


class Held(ctypes.Structure):
    _fields_ = (("keys", Side), ("values", Side), ("block", _LONG), ("bfloat16", _LONG))


class _Heads(ctypes.Structure):
    _fields_ = (
        *((name, _LONG) for name in ("heads", "key_value_heads", "key_width", "value_width", "window")),
        ("scale", ctypes.c_double),
    )


class Span(NamedTuple):
    """The new tokens of one row.

    start: the first of them in the pass. new: how many. held: tokens of the row before them.
    blocks: the numbers of its blocks, in order, with room for all of these.
    """

    start: int
    new: int
    held: int
    blocks: Sequence[int]


class Rows:
    """The rows of a pass as the native library reads them.

    spans: one after the other, without gaps, the first at 0.
    block: tokens of a block.
    Raises: ShoestringError where a row has fewer blocks than tokens.
    """

    def __init__(self, spans: Sequence[Span], block: int) -> None:
        self.block, self.count = block, len(spans)
        self.tokens = sum(span.new for span in spans)
        lengths = [-(-(span.held + span.new) // block) for span in spans]
        for span, length in zip(spans, lengths, strict=True):
            if len(span.blocks) < length or span.new < 1 or span.held < 0:
                raise ShoestringError(f"{span.held} + {span.new} tokens do not fit in {len(span.blocks)} blocks")
        numbers = [number for span, length in zip(spans, lengths, strict=True) for number in span.blocks[:length]]
        self._blocks = numpy.array(numbers, dtype=numpy.int64)
        self.most = int(self._blocks.max(initial=-1)), int(self._blocks.min(initial=0))
        starts = numpy.cumsum([0, *lengths[:-1]]) * 8 + self._blocks.ctypes.data
        self._rows = numpy.array(
            [[span.start, span.new, span.held, at] for span, at in zip(spans, starts.tolist(), strict=True)],
            dtype=numpy.int64,
        )

    @property
    def address(self) -> int:
        return int(self._rows.ctypes.data)

    def expect(self, blocks: int) -> None:
        """Raises: ShoestringError where a row has a block beyond the first `blocks`."""
        if self.most[0] >= blocks or self.most[1] < 0:
            raise ShoestringError(f"a row has a block that is none of the {blocks}")


def fits(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the native library can attend: tensors of the CPU, without a gradient, and a kernel in use that is not torch."""
    if not (queries.is_cpu and keys.is_cpu) or keys.dtype not in TYPES or values.dtype != keys.dtype:
        return False
    if torch.is_grad_enabled() and queries.requires_grad:
        return False
    return queries.is_floating_point() and in_use() is not None and not torch.compiler.is_compiling()


def held(keys: Tensor, values: Tensor, block: int) -> Held:
    """Keys and values of a layer, [slots, Hk, D] each, as the library reads them. A slot is a place of a block."""
    sides = []
    for numbers in (keys, values):
        if not numbers.is_cpu or numbers.dtype not in TYPES or not numbers.is_contiguous():
            raise ShoestringError("keys and values are contiguous float32 or bfloat16 of the CPU")
        slots, heads, width = numbers.shape
        sides.append(Side(numbers.data_ptr(), block * heads * width, heads * width, width))
        if slots % block:
            raise ShoestringError(f"{slots} slots are no whole number of blocks of {block}")
    return Held(*sides, block, keys.dtype == torch.bfloat16)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, rows: Rows, *, scale: float | None = None, window: int | None = None
) -> Tensor:
    """softmax(scale q kᵀ) v, each new token seeing its row up to itself: float32 [N, H, Dv].

    queries: [N, H, D], any strides but the last. keys, values: [slots, Hk, D] and [slots, Hk, Dv], contiguous, in which those of
    the new tokens are already. rows: of the N tokens. scale: None: one over the square root of D. window: how many of the latest
    tokens are seen; None: all. Sums are float32.
    Raises: ShoestringError where these do not fit each other, or where no native kernel is in use.
    """
    tokens, heads, width = queries.shape
    if tokens != rows.tokens or keys.shape[:2] != values.shape[:2] or keys.shape[2] != width or heads % keys.shape[1]:
        raise ShoestringError(
            f"queries {list(queries.shape)} of {rows.tokens} tokens do not fit keys {list(keys.shape)} and "
            f"values {list(values.shape)}"
        )
    if window is not None and window < 1:
        raise ShoestringError(f"a window has at least 1 token, not {window}")
    rows.expect(keys.shape[0] // rows.block)
    found = in_use()
    if found is None:
        raise ShoestringError("no native kernel is in use")
    library, kernel = found
    asked = queries.float()
    if asked.stride(2) != 1:
        asked = asked.contiguous()
    out = torch.empty(tokens, heads, values.shape[2])
    shape = _Heads(heads, keys.shape[1], width, values.shape[2], window or 0, width**-0.5 if scale is None else scale)
    library.attend(kernel, shape, held(keys, values, rows.block), rows.address, rows.count, asked, out)
    return out
