"""The modules of a packed model: the matrices they stand for, whatever the shape, and no others."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.errors import ShoestringError
from shoestring.lowbit.activations import fake_tokens
from shoestring.lowbit.format import Quantised
from shoestring.lowbit.formats.integer import Integer
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.lowbit.packed_embedding import PackedEmbedding
from shoestring.lowbit.packed_linear import PackedLinear
from shoestring.lowbit.packing import LAYOUTS

SHAPES = st.tuples(st.integers(0, 40), st.integers(1, 70))


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=30)
@given(shape=SHAPES, layout=st.sampled_from(LAYOUTS), lead=st.sampled_from([(), (3,), (2, 0), (2, 3)]))
def test_a_packed_matrix_multiplies_as_the_numbers_it_stands_for(
    shape: tuple[int, int], layout: str, lead: tuple[int, ...]
) -> None:
    rows, columns = shape
    quantised = Ternary(scale="row").quantise(drawn(rows, columns))
    packed = PackedLinear.of(quantised, layout)
    assert torch.equal(packed.quantised().codes, quantised.codes)
    assert torch.equal(packed.quantised().scales, quantised.scales)
    x = torch.randn(*lead, columns, generator=torch.Generator().manual_seed(1))
    wanted = F.linear(fake_tokens(x).double(), quantised.dequantise().double())
    torch.testing.assert_close(packed(x).double(), wanted, rtol=1e-5, atol=1e-5)


def test_groups_of_columns_have_scales_of_their_own() -> None:
    quantised = Ternary(scale="group", group=80).quantise(
        drawn(5, 160) * torch.tensor([1.0, 9.0]).repeat_interleave(80)
    )
    packed, x = PackedLinear.of(quantised, "ternary1.6"), drawn(4, 160, 1)
    torch.testing.assert_close(packed(x), F.linear(fake_tokens(x), quantised.dequantise()), rtol=1e-4, atol=1e-4)
    with pytest.raises(ShoestringError, match="multiple of the 20 columns"):
        PackedLinear.of(Ternary(scale="group", group=16).quantise(drawn(5, 160)), "ternary1.6")


def test_it_costs_what_a_linear_layer_costs_and_has_no_gradient() -> None:
    packed = PackedLinear.of(Ternary().quantise(drawn(7, 9)), "ternary2")
    assert cost.linear(packed, 5) == cost.linear(nn.Linear(9, 7), 5)
    assert not list(packed.parameters())
    assert set(packed.state_dict()) == {"packed", "scales"}


@settings(deadline=None, max_examples=20)
@given(shape=SHAPES, bits=st.sampled_from([4, 8]))
def test_a_table_is_looked_up_and_multiplied_as_the_numbers_it_stands_for(shape: tuple[int, int], bits: int) -> None:
    rows, columns = shape
    quantised = Integer(bits=bits, scale="row").quantise(drawn(rows, columns))
    table = PackedEmbedding.of(quantised, bits)
    numbers = quantised.dequantise()
    ids = torch.arange(rows)[torch.randperm(rows)].view(1, -1)
    assert torch.equal(table(ids), numbers[ids])
    x = drawn(3, columns, 2)
    wanted = F.linear(fake_tokens(x).double(), numbers.double())
    torch.testing.assert_close(table.logits(x).double(), wanted, rtol=1e-5, atol=1e-5)


def test_at_16_bits_a_table_is_float16() -> None:
    weight, x = drawn(1100, 64), drawn(2, 64, 1)
    table = PackedEmbedding(weight.half(), None, 1100, 64, 16)
    assert torch.equal(table(torch.tensor([3, 1])), weight.half().float()[[3, 1]])
    torch.testing.assert_close(table.logits(x), x @ weight.half().float().T, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_together_is_refused() -> None:
    good = PackedLinear.of(Ternary().quantise(drawn(7, 9)), "ternary2")
    for packed, scales in (
        (good.packed[:-1], good.scales),
        (good.packed.int(), good.scales),
        (good.packed, good.scales[:-1]),
        (good.packed, good.scales.double()),
        (good.packed, good.scales[:, :0]),
        (torch.full_like(good.packed, 3), good.scales),
    ):
        with pytest.raises(ShoestringError):
            PackedLinear(packed, scales, 7, 9, "ternary2")
    with pytest.raises(ShoestringError, match="ternary3"):
        PackedLinear(good.packed, good.scales, 7, 9, "ternary3")
    with pytest.raises(ShoestringError, match="-1, 0 and 1"):
        PackedLinear.of(Quantised(torch.full((2, 3), 2, dtype=torch.int8), torch.ones(2, 1)), "ternary2")
    weight, scales = torch.zeros(4, 6, dtype=torch.int8), torch.ones(4, 1)
    for table in (
        (weight, scales, 4, 6, 5),
        (weight, scales, 4, 7, 8),
        (weight, None, 4, 6, 8),
        (weight, scales[:3], 4, 6, 8),
        (weight, scales, 4, 6, 4),
        (weight.half(), scales, 4, 6, 16),
    ):
        with pytest.raises(ShoestringError, match=r"table|matrix of|4, 8 or 16"):
            PackedEmbedding(*table)
