"""The reference's own arithmetic, against exact fractions."""

from fractions import Fraction

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoestring.lowbit.kernels.plain import exact_dots, fused_multiply_add

SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded_once(exact: Fraction) -> float:
    """The float32 nearest to `exact`, ties to even: among the neighbours of what two roundings give."""
    near = torch.tensor(float(exact), dtype=torch.float64).float()
    around = [near, torch.nextafter(near, torch.tensor(-torch.inf)), torch.nextafter(near, torch.tensor(torch.inf))]
    finite = [value for value in around if bool(value.isfinite())]
    return min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(torch.int32)) & 1)).item()


@settings(max_examples=100, deadline=None)
@given(a=SINGLE, b=SINGLE, c=SINGLE)
@example(a=1 + 2.0**-23, b=1 + 2.0**-23, c=2.0**-80)  # a tie that only the last summand breaks
@example(a=1 + 2.0**-12, b=1 + 2.0**-12, c=-(2.0**-90))
@example(a=3.0, b=2.0**-149, c=2.0**-148)
@example(a=-0.0, b=1.0, c=0.0)
def test_a_fused_multiply_add_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = fused_multiply_add(*(torch.tensor([value]) for value in (a, b, c))).item()
    if abs(exact) < Fraction(2) ** 127:
        assert found == rounded_once(exact)


def test_two_roundings_would_differ() -> None:
    """The case that a sum rounded to float64 first gets wrong."""
    a = torch.tensor([1 + 2.0**-12], dtype=torch.float32)
    product = a.double() * a.double()  # 1 + 2^-11 + 2^-24: halfway between two float32 numbers
    c = torch.tensor([-(2.0**-90)])
    assert float((product + c.double()).float()) == float(product.float())
    assert float(fused_multiply_add(a, a, c)) < 1 + 2.0**-11 + 2.0**-23
    up = torch.tensor([2.0**-90])
    assert float(fused_multiply_add(a, a, up)) > 1 + 2.0**-11


def test_exact_dots_in_slabs() -> None:
    codes = torch.full((2, 5000), 127, dtype=torch.int8)
    weights = torch.full((3, 5000), -128, dtype=torch.int8)
    weights[1, 17] = 1
    found = exact_dots(codes, weights, 128)
    assert found.tolist() == [[-127 * 128 * 5000, -127 * 128 * 4999 + 127, -127 * 128 * 5000]] * 2
