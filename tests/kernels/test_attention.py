"""Attention over blocks in the native library: near its definition, the same bits by every kernel, whoever a row is read with."""

import math

import pytest
import torch
from torch import Tensor

from shoestring import kernels
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import KeptShape
from shoestring.decode.cache_store import CacheStore
from shoestring.decode.cache_stores.int4 import Int4Store
from shoestring.decode.cache_stores.int8 import Int8Store
from shoestring.decode.paged_cache import PagedCache
from shoestring.errors import ShoestringError
from shoestring.kernels.attention import BlockRows, BlockSpan, attend, looks

NATIVE = [kernel for kernel in kernels.available() if kernel != "torch"]
pytestmark = pytest.mark.skipif(not NATIVE, reason="the native library was not built")

BLOCK = 16
MIXED = [(0, 5), (40, 1), (3, 33), (130, 1), (64, 17), (0, 1)]
"""(held, new) of rows: prompts read whole and in pieces, and rows that go on."""


def case(
    spans: list[tuple[int, int]], heads: int, shared: int, width: int, value_width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, list[BlockSpan]]:
    """Queries, keys, values and rows whose blocks lie all over a store."""
    made = torch.Generator().manual_seed(3)
    needed = [-(-(held + new) // BLOCK) for held, new in spans]
    order = torch.randperm(sum(needed) + 3, generator=made).tolist()
    store = (len(order) * BLOCK, shared)
    keys = torch.randn(*store, width, generator=made).to(dtype)
    values = torch.randn(*store, value_width, generator=made).to(dtype)
    rows, start = list[BlockSpan](), 0
    for (held, new), count in zip(spans, needed, strict=True):
        rows.append(BlockSpan(start, new, held, [order.pop() for _ in range(count)]))
        start += new
    return torch.randn(start, heads, width, generator=made), keys, values, rows


def defined(
    queries: Tensor, keys: Tensor, values: Tensor, rows: list[BlockSpan], scale: float | None, window: int | None
) -> Tensor:
    """From the definition, in float64, one token and head at a time."""
    tokens, heads, width = queries.shape
    found = torch.zeros(tokens, heads, values.shape[2], dtype=torch.float64)
    scale = 1 / math.sqrt(width) if scale is None else scale
    sharing = heads // keys.shape[1]
    for span in rows:
        slots = torch.tensor([block * BLOCK + place for block in span.blocks for place in range(BLOCK)])
        for token in range(span.new):
            end = span.held + token + 1
            seen = slots[max(0, end - window) if window else 0 : end]
            for head in range(heads):
                scores = scale * (keys[seen, head // sharing].double() @ queries[span.start + token, head].double())
                found[span.start + token, head] = scores.softmax(0) @ values[seen, head // sharing].double()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("sharing", [1, 2, 3, 8])
@pytest.mark.parametrize(("width", "value_width"), [(16, 16), (22, 22), (64, 64), (80, 80), (128, 96), (8, 100)])
def test_it_is_attention(width: int, value_width: int, sharing: int, dtype: torch.dtype) -> None:
    queries, keys, values, rows = case(MIXED, 2 * sharing, 2, width, value_width, dtype)
    for window in (None, 1, 20, 70):
        found = attend(queries, keys, values, BlockRows(rows, BLOCK), window=window)
        torch.testing.assert_close(
            found.double(), defined(queries, keys, values, rows, None, window), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("count", [1, 2, 33])
def test_rows_that_go_on(count: int) -> None:
    spans = [(7 * row, 1) for row in range(count)]
    queries, keys, values, rows = case(spans, 4, 2, 32, 32, torch.float32)
    found = attend(queries, keys, values, BlockRows(rows, BLOCK), scale=0.7)
    torch.testing.assert_close(found.double(), defined(queries, keys, values, rows, 0.7, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("store", "width", "value_width"),
    [
        (Int8Store(), 22, 22),
        (Int8Store(), 64, 64),
        (Int8Store(), 128, 96),
        (Int4Store(), 32, 32),
        (Int4Store(), 64, 96),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Int4Store | Int8Store) else str(each),
)
def test_codes_are_attended_to_as_the_numbers_that_they_stand_for(
    store: CacheStore, width: int, value_width: int
) -> None:
    queries, keys, values, rows = case(MIXED, 6, 2, width, value_width, torch.float32)
    assert store.readable(width)
    codes, spans = (store.encode(keys)[0], store.encode(values)[0]), BlockRows(rows, BLOCK)
    numbers = store.decode(codes[:1], keys), store.decode(codes[1:], values)
    for kernel in NATIVE:
        kernels.choose(kernel)
        assert torch.equal(attend(queries, *codes, spans), attend(queries, *numbers, spans)), kernel
        assert torch.equal(looks(queries, codes[0], spans), looks(queries, numbers[0], spans)), kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("width", [22, 64])
def test_kernels_threads_and_company_change_no_bit(width: int, dtype: torch.dtype) -> None:
    queries, keys, values, rows = case([*MIXED, (300, 40), (1500, 2)], 6, 2, width, width, dtype)
    for window in (None, 20):
        kernels.choose("plain")
        wanted = attend(queries, keys, values, BlockRows(rows, BLOCK), window=window)
        for kernel in NATIVE:
            kernels.choose(kernel)
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert torch.equal(attend(queries, keys, values, BlockRows(rows, BLOCK), window=window), wanted), kernel
        for span in rows:  # each row by itself, and its last token by itself
            own, end = queries[span.start : span.start + span.new], span.held + span.new
            alone = attend(own, keys, values, BlockRows([span._replace(start=0)], BLOCK), window=window)
            assert torch.equal(alone, wanted[span.start : span.start + span.new])
            last = attend(
                own[-1:], keys, values, BlockRows([BlockSpan(0, 1, end - 1, span.blocks)], BLOCK), window=window
            )
            assert torch.equal(last[0], alone[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("width", "sharing"), [(22, 1), (64, 3)])
def test_what_is_looked_at(width: int, sharing: int, dtype: torch.dtype) -> None:
    queries, keys, _, rows = case([*MIXED, (1100, 12)], 2 * sharing, 2, width, width, dtype)
    wanted = None
    for kernel in NATIVE:
        kernels.choose(kernel)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found = looks(queries, keys, BlockRows(rows, BLOCK), scale=0.3)
            wanted = found if wanted is None else wanted
            assert torch.equal(found, wanted), kernel
    assert wanted is not None
    assert wanted.shape[2] == 1112
    for span in rows:
        slots = torch.tensor([block * BLOCK + place for block in span.blocks for place in range(BLOCK)])
        for token in range(span.new):
            end, own = span.held + token + 1, wanted[span.start + token].double()
            asked = queries[span.start + token].double().view(2, sharing, width)
            scores = 0.3 * torch.einsum("hgd,khd->hgk", asked, keys[slots[:end]].double()).flatten(0, 1)
            torch.testing.assert_close(own[:, :end], scores.softmax(-1), rtol=1e-4, atol=1e-6)
            assert not own[:, end:].any()


def test_what_is_no_number_stays_with_those_who_see_it() -> None:
    queries, keys, values, rows = case([(20, 8)], 2, 1, 16, 16, torch.float32)
    keys[rows[0].blocks[1] * BLOCK + 6] = torch.nan  # position 22
    found = attend(queries, keys, values, BlockRows(rows, BLOCK))
    assert found[:2].isfinite().all()
    assert found[2:].isnan().all()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_paged_layer_answers_as_torch_does(dtype: torch.dtype, window: int | None) -> None:
    found = []
    for kernel in (NATIVE[-1], "torch"):
        kernels.choose(kernel)
        cache = PagedCache([KeptShape(2, 24, 24)], torch.zeros(0, dtype=dtype), 20, 4)
        made, answers = torch.Generator().manual_seed(1), []
        for number in range(3):
            cache.tables[number], cache.held[number] = cache.pool.match(()), 0
        for new in ({0: 9, 1: 1, 2: 40}, {0: 1, 1: 1}, {2: 3, 0: 7}):
            documents = torch.tensor([[number for number, count in new.items() for _ in range(count)]])
            for number, count in new.items():
                cache.pool.extend(cache.tables[number], cache.held[number] + count)
            cache.begin(Inputs(torch.zeros_like(documents), None, documents))
            queries, keys, values = (
                torch.randn(1, documents.shape[1], heads, 24, generator=made).to(dtype).transpose(1, 2)
                for heads in (6, 2, 2)
            )
            answers.append(cache.layers[0].attend(queries, keys, values, window=window))
            cache.advance()
        found.append(torch.cat(answers, 2))
    assert found[0].dtype == dtype
    near = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*found, rtol=near, atol=near)


def test_what_does_not_fit_is_refused() -> None:
    queries, keys, values, rows = case([(4, 2)], 4, 2, 16, 16, torch.float32)
    with pytest.raises(ShoestringError, match="do not fit keys"):
        attend(queries[:1], keys, values, BlockRows(rows, BLOCK))
    with pytest.raises(ShoestringError, match="do not fit keys"):
        attend(queries[:, :3], keys, values, BlockRows(rows, BLOCK))
    with pytest.raises(ShoestringError, match="a block that is none of the 4"):
        attend(queries, keys, values, BlockRows([BlockSpan(0, 2, 4, [4])], BLOCK))
    with pytest.raises(ShoestringError, match="20 \\+ 2 tokens do not fit in 1 blocks"):
        BlockRows([BlockSpan(0, 2, 20, [0])], BLOCK)
    with pytest.raises(ShoestringError, match="no whole number of blocks"):
        attend(queries, keys[:40], values[:40], BlockRows([BlockSpan(0, 2, 4, [0])], BLOCK))
    with pytest.raises(ShoestringError, match="contiguous"):
        attend(queries, keys.mT.contiguous().mT, values, BlockRows(rows, BLOCK))
    with pytest.raises(ShoestringError, match="a window has at least 1"):
        attend(queries, keys, values, BlockRows(rows, BLOCK), window=0)
    kernels.choose("torch")
    with pytest.raises(ShoestringError, match="no native kernel"):
        attend(queries, keys, values, BlockRows(rows, BLOCK))
