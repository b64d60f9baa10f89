"""Products with 8- and 4-bit matrices: right, and the same bits from every kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_bits import agreed

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import kernels
from shoestring.lowbit.activations import quantise_tokens
from shoestring.lowbit.packing import integer
from tests.examples import examples


@settings(max_examples=examples(60), deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    rows=st.integers(0, 40),
    columns=st.integers(0, 300),
    tokens=st.integers(0, 10),
    seed=st.integers(0, 2**31),
)
def test_any_shape(bits: int, rows: int, columns: int, tokens: int, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    low = -(2 ** (bits - 1))
    codes = torch.randint(low, -low, (rows, columns), dtype=torch.int8, generator=chance)
    scales, x = torch.randn(rows, 1, generator=chance), torch.randn(tokens, columns, generator=chance)
    weights = codes if bits == 8 else integer.pack(codes)
    found = agreed(lambda: kernels.int_matmul(x, weights, scales, rows, columns, bits))
    if columns:
        quantised, scale = quantise_tokens(x)
        wanted = (quantised.double() @ codes.double().t()) * scales[:, 0].double() * scale.double()
        torch.testing.assert_close(found.double(), wanted, rtol=3e-7, atol=1e-30)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_largest_sums_are_exact(weight: int, tokens: int) -> None:
    columns = 131072
    codes = torch.full((5, columns), weight, dtype=torch.int8)
    x = torch.full((tokens, columns), -127.0)
    found = agreed(lambda: kernels.int_matmul(x, codes, torch.ones(5, 1), 5, columns, 8))
    assert torch.equal(found, torch.full((tokens, 5), -127.0 * weight * columns))


def test_any_bytes_and_tokens_that_are_not_finite() -> None:
    chance = torch.Generator().manual_seed(2)
    packed = torch.randint(0, 256, (9, integer.row_bytes(70)), dtype=torch.uint8, generator=chance)
    x = torch.randn(5, 70, generator=chance)
    x[3, 69] = torch.nan
    for bits, weights in ((4, packed), (8, packed.repeat(1, 2)[:, :70].contiguous().view(torch.int8))):
        found = agreed(lambda b=bits, w=weights: kernels.int_matmul(x, w, torch.ones(9, 1), 9, 70, b))  # type: ignore[misc]
        assert found.isnan().any(1).tolist() == [False, False, False, True, False]


def test_what_does_not_fit_is_refused() -> None:
    x, scales, weights = torch.ones(1, 70), torch.ones(3, 1), torch.ones(3, 70, dtype=torch.int8)
    with pytest.raises(UsageError, match="not of 5"):
        kernels.int_matmul(x, weights, scales, 3, 70, 5)
    with pytest.raises(ShoestringError, match=r"4-bit matrix of 3 x 70 is uint8 \[3, 64\], not int8 \[3, 70\]"):
        kernels.int_matmul(x, weights, scales, 3, 70, 4)
    with pytest.raises(ShoestringError, match="one scale a row, not 2"):
        kernels.int_matmul(x, weights, torch.ones(3, 2), 3, 70, 8)
    with pytest.raises(ShoestringError, match="131072"):
        kernels.int_matmul(
            torch.ones(1, 131073), torch.ones(1, 131073, dtype=torch.int8), torch.ones(1, 1), 1, 131073, 8
        )
