"""The GPU's order: exact there and back, every trit where the documentation says, damage refused."""

import pytest
import torch
from gpu_cases import ordered, quantised
from hypothesis import given, settings

from shoestring.errors import ShoestringError
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.gpu import Order, reorder, restore
from shoestring.lowbit.gpu import order as module
from shoestring.lowbit.gpu.order import doubled
from shoestring.lowbit.packing import LAYOUTS, pack


def trits(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(rows))


@settings(max_examples=60, deadline=None)
@given(case=quantised())
def test_there_and_back_is_exact(case: tuple[Quantised, str]) -> None:
    matrix, layout = case
    words, order = ordered(matrix, layout)
    assert torch.equal(restore(words, order, layout), pack(matrix.codes, layout))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(doubled(words, order, dtype)[: order.rows].float(), 2.0 * matrix.codes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 40), (40, 0), (1, 1)])
def test_next_to_nothing(rows: int, columns: int, layout: str) -> None:
    packed, order = pack(trits(rows, columns), layout), Order(rows, columns)
    words = reorder(packed, order, layout)
    assert words.shape == order.shape
    assert torch.equal(restore(words, order, layout), packed)


@pytest.mark.parametrize(("columns", "groups"), [(700, 1), (768, 3), (480, 4), (300, 3)])
def test_every_trit_is_where_the_documentation_says(columns: int, groups: int) -> None:
    codes, rows = trits(35, columns), 35
    layout = "ternary1.6" if groups == 3 and columns == 300 else "ternary2"
    order = Order(rows, columns, groups)
    words = reorder(pack(codes, layout), order, layout)
    group, run = columns // groups, 32 if groups == 1 or columns // groups % 32 == 0 else 16
    wanted = torch.zeros_like(words, dtype=torch.int32)
    for row in range(rows):
        for column in range(columns):
            inside = column % group
            number = column // group * -(-group // run) + inside // run
            bits = (int(codes[row, column]) & 3) << (14 - 2 * (number % 8))
            wanted[row // 16, number // 8, row % 16, inside % run] |= bits
    assert torch.equal(words, wanted.to(torch.int16))


def test_a_matrix_of_several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, order = pack(trits(100, 77), "ternary1.6"), Order(100, 77)
    whole = reorder(packed, order, "ternary1.6")
    monkeypatch.setattr(module, "SLAB", 32)
    assert torch.equal(reorder(packed, order, "ternary1.6"), whole)
    assert torch.equal(restore(whole, order, "ternary1.6"), packed)


def test_bytes_of_real_shapes() -> None:
    for rows, columns in ((4096, 4096), (22016, 4096), (4096, 11008), (57344, 8192)):
        words = torch.empty(Order(rows, columns).shape, dtype=torch.int16, device="meta")
        assert words.nbytes == rows * columns // 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_is_refused(layout: str) -> None:
    packed = pack(trits(20, 50), layout)
    broken = packed.clone()
    broken[7] = 255
    with pytest.raises(ShoestringError, match="byte 7 is 255, which stands for no trits"):
        reorder(broken, Order(20, 50), layout)
    with pytest.raises(ShoestringError, match=f"not a {layout} matrix of 20 x 50"):
        reorder(packed[:-1], Order(20, 50), layout)
    with pytest.raises(ShoestringError, match="is int16 \\[2, 1, 16, 32\\], not int16 \\[1, 1, 16, 32\\]"):
        restore(reorder(packed, Order(20, 50), layout)[:1], Order(20, 50), layout)
    with pytest.raises(ShoestringError, match="3 groups do not divide"):
        Order(20, 50, 3)
