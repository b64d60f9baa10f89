"""Attention of the new tokens of rows to keys and values in blocks, without copying these.

The structures are those of native/attention.h.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.kernels.choice import in_use
from shoestring.kernels.native import Library

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_int64

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2, torch.int8: 3}
"""Of keys and values, and their numbers in the library. uint8 is codes: of a head of a token D of int8, then a float16 scale.
int8 is pairs: D / 2 bytes, then of each group of PAIRS_GROUP numbers their least and their scale, float16 (native/attention.h)."""

SCALE_BYTES = 2
PAIRS_GROUP = 32


def width_of(held: Tensor) -> int:
    """The numbers of a head of a token that keys or values stand for."""
    if held.dtype == torch.int8:
        return held.shape[-1] * 8 // 5
    return held.shape[-1] - (SCALE_BYTES if held.dtype == torch.uint8 else 0)


class _Side(ctypes.Structure):
    _fields_ = (("numbers", _POINTER), *((name, _LONG) for name in ("block_step", "token_step", "head_step")))


class _Held(ctypes.Structure):
    _fields_ = (("keys", _Side), ("values", _Side), ("block", _LONG), ("numbers", _LONG))


class _Heads(ctypes.Structure):
    _fields_ = (
        *((name, _LONG) for name in ("heads", "key_value_heads", "key_width", "value_width", "window")),
        ("scale", ctypes.c_double),
    )


class BlockSpan(NamedTuple):
    """The new tokens of one row.

    start: the first of them in the pass. new: how many. held: tokens of the row before them.
    blocks: the numbers of its blocks, in order, with room for all of these.
    """

    start: int
    new: int
    held: int
    blocks: Sequence[int]


class BlockRows:
    """The rows of a pass as the native library reads them.

    spans: one after the other, without gaps, the first at 0.
    block: tokens of a block.
    Raises: ShoestringError where a row has fewer blocks than tokens.
    """

    def __init__(self, spans: Sequence[BlockSpan], block: int) -> None:
        self.block, self.count = block, len(spans)
        self.tokens = sum(span.new for span in spans)
        self.longest = max((span.held + span.new for span in spans), default=0)
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

    def expect(self, blocks: int, block: int) -> None:
        """Raises: ShoestringError where a row has a block beyond the first `blocks`, or blocks have another size."""
        if self.most[0] >= blocks or self.most[1] < 0:
            raise ShoestringError(f"a row has a block that is none of the {blocks}")
        if block != self.block:
            raise ShoestringError(f"blocks of {block} tokens are not the rows' blocks of {self.block}")


def fits(queries: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the native library can attend: tensors of the CPU, without a gradient, and a kernel in use that is not torch."""
    if not (queries.is_cpu and keys.is_cpu) or keys.dtype not in TYPES or values.dtype != keys.dtype:
        return False
    if torch.is_grad_enabled() and queries.requires_grad:
        return False
    return queries.is_floating_point() and in_use() is not None and not torch.compiler.is_compiling()


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 by an instruction of its own."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16"))


class Layers:
    """Keys and values of layers of one shape, as the library reads them.

    layers: of each, keys [blocks, Hk, block, D] and values [blocks, Hk, block, Dv], of any strides but the last; codes have their
        scale behind them.
    blocks, block: where no layer keeps any, how many blocks rows have, and of how many tokens.
    shape: (Hk, D, Dv).
    Raises: ShoestringError for layers of different shapes, and tensors that the library cannot read.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], blocks: int = 0, block: int = 0) -> None:
        if not layers:
            self.blocks, self.block, self.shape = blocks, block, (0, 0, 0)
            self._kept, self.array = [], (_Held * 0)()
            return
        shapes = {(keys.shape[:3], width_of(keys), values.shape[:3], width_of(values)) for keys, values in layers}
        if len(shapes) != 1:
            raise ShoestringError("the layers keep keys and values of different shapes")
        (self.blocks, heads, self.block), key_width, beside, value_width = shapes.pop()
        self.shape = heads, key_width, value_width
        for keys, values in layers:
            alike = keys.dtype in TYPES and keys.dtype == values.dtype and beside == keys.shape[:3]
            if not alike or not all(one.is_cpu and one.stride(3) == 1 for one in (keys, values)):
                raise ShoestringError(
                    "keys and values are float32, bfloat16 or codes of the CPU, contiguous in their last dimension"
                )
        self._kept = list(layers)
        self.array = (_Held * len(layers))(*(self._held(*both) for both in layers))

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.array)

    def _held(self, keys: Tensor, values: Tensor) -> "_Held":
        sides = (_Side(one.data_ptr(), one.stride(0), one.stride(2), one.stride(1)) for one in (keys, values))
        return _Held(*sides, self.block, TYPES[keys.dtype])


class LayersApart:
    """Keys and values of rows that each have `Layers` of their own, of one block each, as the library reads them.

    rows: at least one. Raises: ShoestringError where they are not of one model.
    """

    def __init__(self, rows: Sequence[Layers]) -> None:
        if len({(one.shape, len(one)) for one in rows}) != 1:
            raise ShoestringError("rows of different models cannot be read together")
        self.shape, self.blocks, self.block = rows[0].shape, 1, max(one.block for one in rows)
        self._kept, self._count = list(rows), len(rows[0])
        self.array = (_Held * (len(rows) * self._count))()
        size = ctypes.sizeof(_Held) * self._count
        for number, one in enumerate(rows):
            ctypes.memmove(self.address + number * size, one.address, size)

    def __len__(self) -> int:
        return self._count

    @property
    def address(self) -> int:
        return ctypes.addressof(self.array)


def in_blocks(slots: Tensor, block: int) -> Tensor:
    """[blocks, Hk, block, D] of [slots, Hk, D]: a view. Raises: ShoestringError where there are no whole blocks."""
    if len(slots) % block:
        raise ShoestringError(f"{len(slots)} slots are no whole number of blocks of {block}")
    return slots.unflatten(0, (len(slots) // block, block)).transpose(1, 2)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: BlockRows,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """softmax(scale q kᵀ) v, each new token seeing its row up to itself: float32 [N, H, Dv].

    queries: [N, H, D], any strides but the last. keys, values: [slots, Hk, D] and [slots, Hk, Dv], in which those of
    the new tokens are already. rows: of the N tokens. scale: None: one over the square root of D. window: how many of the latest
    tokens are seen; None: all. Sums are float32.
    Raises: ShoestringError where these do not fit each other, or where no native kernel is in use.
    """
    if keys.shape[:2] != values.shape[:2]:
        raise ShoestringError(f"keys {list(keys.shape)} do not fit values {list(values.shape)}")
    if window is not None and window < 1:
        raise ShoestringError(f"a window has at least 1 token, not {window}")
    library, (kernel, shape, layers, asked) = _asked(queries, keys, values, rows, scale, window or 0)
    out = torch.empty(*queries.shape[:2], width_of(values))
    library.attend(kernel, shape, layers.address, rows, asked, out)
    return out


def looks(queries: Tensor, keys: Tensor, rows: BlockRows, *, scale: float | None = None) -> Tensor:
    """softmax(scale q kᵀ), each new token seeing its row up to itself: float32 [N, H, S], zero at what it does not see.

    S: places of the longest row. The rest as `attend` takes it. Raises: as `attend`.
    """
    # values are not looked at
    library, (kernel, shape, layers, asked) = _asked(queries, keys, keys, rows, scale, 0)
    out = torch.empty(*queries.shape[:2], rows.longest)
    library.looks(kernel, shape, layers.address, rows, asked, out)
    return out


def _asked(
    queries: Tensor, keys: Tensor, values: Tensor, rows: BlockRows, scale: float | None, window: int
) -> tuple[Library, tuple[int, _Heads, Layers, Tensor]]:
    """The library, and what its functions about queries take: its kernel, the heads, the layer, the queries. All is checked.

    window: 0 for none; the rest as `attend` takes it.
    """
    tokens, heads, width = queries.shape
    if tokens != rows.tokens or width_of(keys) != width or heads % keys.shape[1]:
        raise ShoestringError(
            f"queries {list(queries.shape)} of {rows.tokens} tokens do not fit keys {list(keys.shape)}"
        )
    layers = Layers([(in_blocks(keys, rows.block), in_blocks(values, rows.block))])
    rows.expect(layers.blocks, layers.block)
    found = in_use()
    if found is None:
        raise ShoestringError("no native kernel is in use")
    library, kernel = found
    asked = queries.float()
    if asked.stride(2) != 1:
        asked = asked.contiguous()
    shape = _Heads(heads, keys.shape[1], width, width_of(values), window, width**-0.5 if scale is None else scale)
    return library, (kernel, shape, layers, asked)
