"""Products with matrices in groups: every kernel gives the bits of the definition, at odd shapes, odd bytes and odd scales."""

from functools import partial

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from same_bits import agreed, bits
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import kernels
from shoestring.lowbit.packing import grouped
from shoestring.lowbit.packing.grouped import GroupedMatrix

SHAPES = [(1, 1, 1), (1, 16, 32), (3, 17, 33), (5, 40, 96), (4, 33, 64), (9, 7, 100), (64, 50, 128), (2, 100, 640)]
"""tokens, rows, columns."""


def matrix(rows: int, columns: int, width: int, seed: int = 0) -> GroupedMatrix:
    """Every code occurs, the largest and smallest next to each other too."""
    made = torch.Generator().manual_seed(seed)
    groups = grouped.groups_of(columns)
    scales = torch.rand(rows, groups, generator=made).half()
    if width == 8:
        codes = torch.randint(-128, 128, (rows, groups * 32), generator=made, dtype=torch.int8)
        codes[0, :8] = -128
        return GroupedMatrix(codes, scales, None)
    codes = torch.randint(0, 16, (rows, groups * 32), generator=made, dtype=torch.uint8)
    codes[-1] = 15
    return GroupedMatrix(codes, scales, torch.randn(rows, groups, generator=made).half())


def by_definition(x: Tensor, of: GroupedMatrix) -> Tensor:
    """In numpy: integer sums in int64, each step in extended precision and rounded once to float32."""
    rows, groups = of.scales.shape
    filled = numpy.zeros((len(x), groups * 32), numpy.float32)
    filled[:, : x.shape[1]] = x.numpy()
    cut = filled.reshape(len(x), groups, 32)
    scale = (numpy.abs(cut).max(2) / numpy.float32(127)).astype(numpy.float32)
    codes = numpy.rint(cut / numpy.where(scale == 0, 1, scale)[..., None]).clip(-127, 127).astype(numpy.int64)
    weights = of.codes.numpy().astype(numpy.int64).reshape(rows, groups, 32)
    out = numpy.zeros((len(x), rows), numpy.float32)
    for g in range(groups):
        dots = codes[:, g] @ weights[:, g].T
        by = of.scales[:, g].float().numpy() * scale[:, g, None]
        out = (out.astype(numpy.longdouble) + dots * by.astype(numpy.longdouble)).astype(numpy.float32)
        if of.minimums is not None:
            offset = scale[:, g, None] * codes[:, g].sum(1, keepdims=True).astype(numpy.float32)
            low = of.minimums[:, g].float().numpy().astype(numpy.longdouble)
            out = (out.astype(numpy.longdouble) + low * offset.astype(numpy.longdouble)).astype(numpy.float32)
    return torch.from_numpy(out)


def product(x: Tensor, of: GroupedMatrix, columns: int) -> Tensor:
    packed = grouped.pack(of)
    return agreed(lambda: kernels.grouped_matmul(x, packed, len(of.scales), columns, of.bits))


@pytest.mark.parametrize("width", [4, 8])
def test_single_rows_are_what_their_codes_stand_for(width: int) -> None:
    for _, rows, columns in SHAPES:
        of = matrix(rows, columns, width)
        of.scales[0, 0], of.scales[-1, -1] = torch.inf, 6e-8
        packed, which = grouped.pack(of), torch.tensor([rows - 1, 0, 0, rows // 2])
        found = agreed(partial(kernels.grouped_rows, packed, which, rows, columns, width))
        assert torch.equal(bits(found), bits(of.values()[which, :columns])), (rows, columns)
        for wrong in (-1, rows):
            for kernel in kernels.available():
                kernels.choose(kernel)
                with pytest.raises(IndexError, match=f"between 0 and {rows - 1}"):
                    kernels.grouped_rows(packed, torch.tensor([0, wrong]), rows, columns, width)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kernel_gives_the_bits_of_the_definition(shape: tuple[int, int, int], width: int) -> None:
    tokens, rows, columns = shape
    x, of = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(1)), matrix(rows, columns, width)
    found = product(x, of, columns)
    # extended precision may round twice, in one of billions of sums: near, then, and the integers below exactly
    torch.testing.assert_close(found, by_definition(x, of), rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("width", [4, 8])
def test_the_integer_sums_are_exact_at_their_largest(width: int) -> None:
    """All codes at their ends: what 16 bits must hold is as large as it gets."""
    columns, codes = 96, ({4: (0, 15), 8: (-128, 127)})[width]
    kind = torch.uint8 if width == 4 else torch.int8
    for code in codes:
        for sign in (1.0, -1.0):
            whole = torch.full((17, columns), code, dtype=kind)
            ones = torch.ones(17, 3, dtype=torch.float16)
            of = GroupedMatrix(whole, ones, ones * 0 if width == 4 else None)
            x = torch.full((5, columns), sign * 127)
            assert torch.equal(product(x, of, columns), torch.full((5, 17), sign * 127.0 * code * columns))


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("tokens", range(1, 20))
def test_a_token_does_not_see_its_company(tokens: int, width: int) -> None:
    x, of = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(2)), matrix(33, 64, width)
    packed = grouped.pack(of)
    together = kernels.grouped_matmul(x, packed, 33, 64, width)
    alone = torch.cat([kernels.grouped_matmul(one[None], packed, 33, 64, width) for one in x])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("width", [4, 8])
@given(seed=st.integers(0, 1 << 30), rows=st.integers(1, 40), columns=st.integers(1, 80), tokens=st.integers(1, 9))
def test_random_bytes_give_the_same_bits(seed: int, rows: int, columns: int, tokens: int, width: int) -> None:
    """NaN, infinite and denormal scales are among them."""
    made = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (grouped.packed_bytes(rows, columns, width),), generator=made, dtype=torch.uint8)
    x = torch.randn(tokens, columns, generator=made) * 10 ** torch.randint(-30, 30, (tokens, 1), generator=made)
    agreed(lambda: kernels.grouped_matmul(x, packed, rows, columns, width))


@pytest.mark.parametrize("width", [4, 8])
def test_what_is_no_number_stays_in_its_token(width: int) -> None:
    x, of = torch.randn(4, 96), matrix(20, 96, width)
    clean = product(x, of, 96)
    x[1, 40], x[2, 95] = torch.nan, -torch.inf
    found = product(x, of, 96)
    assert found[1:3].isnan().all()
    assert torch.equal(found[[0, 3]], clean[[0, 3]])
    x = torch.zeros(2, 96)
    assert torch.equal(product(x, of, 96), torch.zeros(2, 20))


@pytest.mark.parametrize("special", [torch.nan, torch.inf, 6e-8, -65504.0, -0.0])
@pytest.mark.parametrize("width", [4, 8])
def test_special_scales(width: int, special: float) -> None:
    of = matrix(20, 64, width)
    of.scales[3, 1] = special
    if of.minimums is not None:
        of.minimums[5, 0] = special
    found = product(torch.randn(6, 64, generator=torch.Generator().manual_seed(4)), of, 64)
    touched = [3, 5] if width == 4 else [3]
    assert bool(found[:, touched].isfinite().all()) == (abs(special) < 1e9)
    assert found[:, [0, 1, 2, 4]].isfinite().all()


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 32), (17, 33), (40, 100)])
def test_packing_comes_back(rows: int, columns: int, width: int) -> None:
    of = matrix(rows, columns, width)
    packed = grouped.pack(of)
    found = grouped.unpack(packed, rows, columns, width)
    for one, other in zip(found, of, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]
    assert torch.equal(grouped.pack(found), packed)


@pytest.mark.parametrize("width", [4, 8])
def test_rounding_is_to_the_nearest(width: int) -> None:
    weight = torch.randn(9, 50, generator=torch.Generator().manual_seed(5))
    of = grouped.rounded(weight, width)
    steps = of.scales.float().repeat_interleave(32, 1)[:, :50]
    assert bool(((of.values()[:, :50] - weight).abs() <= 0.51 * steps + 1e-3).all())
    assert torch.equal(bits(grouped.rounded(of.values()[:, :50], 8).values()), bits(of.values()[:, :64])) or width == 4
    with pytest.raises(ShoestringError, match="float16"):
        grouped.rounded(weight * 1e9, width)
    with pytest.raises(ShoestringError, match="float16"):
        grouped.rounded(weight * torch.nan, width)


def test_what_does_not_fit_is_refused() -> None:
    of = matrix(20, 64, 4)
    packed, x = grouped.pack(of), torch.randn(2, 64)
    with pytest.raises(ShoestringError, match="20 x 96 at 4 bits in groups is uint8 \\[1920\\]"):
        kernels.grouped_matmul(torch.randn(2, 96), packed, 20, 96, 4)
    with pytest.raises(ShoestringError, match="activations are float32 \\[tokens, 64\\]"):
        kernels.grouped_matmul(x[:, :60], packed, 20, 64, 4)
    with pytest.raises(ShoestringError, match="activations are float32"):
        kernels.grouped_matmul(x.double(), packed, 20, 64, 4)
    with pytest.raises(UsageError, match="4 or 8 bits, not 5"):
        kernels.grouped_matmul(x, packed, 20, 64, 5)
    with pytest.raises(ShoestringError, match="0 to 15, not 16"):
        grouped.pack(of._replace(codes=of.codes + 1))
    with pytest.raises(ShoestringError, match="do not fit"):
        grouped.pack(of._replace(codes=of.codes[:, :32]))
    with pytest.raises(ShoestringError, match="do not fit"):
        grouped.pack(of._replace(minimums=of.scales[:, :1]))
