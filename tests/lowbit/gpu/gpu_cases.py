"""Products to check kernels with, and how far from the exact sums they may be: shared by the interpreter and a real GPU."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from shoestring.lowbit.format import Quantised
from shoestring.lowbit.gpu import Order, reorder
from shoestring.lowbit.packing import LAYOUTS, integer, layout_named, pack

TYPES = (torch.float16, torch.bfloat16, torch.float32)
SEEDS = st.integers(0, 2**31)

ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-20}
"""Of the result, once. The interpreter cuts bfloat16 off instead of rounding, which is twice as much."""

SUMMING = {True: 2.0**-18, False: 2.0**-14}
"""Of the sum of the absolute products: interpreted, and where tensor cores, which cut sums off, may be used. One wrong trit among
thousands is more."""


@st.composite
def quantised(draw: st.DrawFn, most_rows: int = 70, most_groups: int = 5) -> tuple[Quantised, str]:
    """Any shape, odd ones too; groups as the layout allows them; scales from the smallest float32 up."""
    layout = draw(st.sampled_from(LAYOUTS))
    groups = draw(st.integers(1, most_groups))
    block = layout_named(layout).columns
    columns = draw(st.integers(1, 600)) if groups == 1 else groups * block * draw(st.integers(1, 8))
    chance = torch.Generator().manual_seed(draw(SEEDS))
    rows = draw(st.integers(1, most_rows))
    codes = torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=chance)
    scales = torch.rand(rows, groups, generator=chance) * draw(st.sampled_from([1.0, 1e-3, 1e-44]))
    return Quantised(codes, scales), layout


def ordered(matrix: Quantised, layout: str) -> tuple[Tensor, Order]:
    order = Order(matrix.codes.shape[0], matrix.codes.shape[1], matrix.scales.shape[1])
    return reorder(pack(matrix.codes, layout), order, layout), order


def activations(tokens: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(rows: int, columns: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(the matrix in float64, as it is held, its scales)."""
    chance = torch.Generator().manual_seed(rows + columns)
    largest = 2 ** (bits - 1)
    codes = torch.randint(-largest, largest, (rows, columns), dtype=torch.int8, generator=chance)
    scales = torch.rand(rows, 1, generator=chance)
    return codes * scales.double(), codes if bits == 8 else integer.pack(codes), scales


def assert_right(found: Tensor, x: Tensor, weight: Tensor, interpreted: bool = False) -> None:
    """found: x @ weight.T as a kernel computed it; weight: float64."""
    assert found.dtype == x.dtype
    assert found.shape == (len(x), len(weight))
    x, weight = x.double().cpu(), weight.cpu()
    wanted = x @ weight.t()
    rounding = ROUNDING[found.dtype] * (2 if interpreted else 1)
    smallest = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133, torch.float32: 2.0**-149}[found.dtype]
    if interpreted and found.dtype == torch.bfloat16:
        smallest = 2.0**-126  # below that the interpreter makes something else of them
    # sums with scales below the normal numbers are rounded to whole 2^-149 for every group and split
    allowed = rounding * wanted.abs() + SUMMING[interpreted] * (x.abs() @ weight.abs().t()) + smallest + 32 * 2.0**-149
    wrong = (found.double().cpu() - wanted).abs() > allowed
    assert not bool(wrong.any()), f"{int(wrong.sum())} of {wrong.numel()} sums are wrong"
