"""One table for every number format of trained matrices, beside slow references of each."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.method import methods
from shoestring.quantise.format import CodeFormat
from shoestring.quantise.formats.adaptive_groups import AdaptiveGroups
from shoestring.quantise.formats.integer_groups import IntegerGroups
from shoestring.quantise.formats.k_blocks import KBlocks
from shoestring.quantise.formats.microscaling import KINDS, Microscaling, magnitudes
from shoestring.quantise.formats.power_groups import PowerGroups
from shoestring.quantise.formats.ternary_blocks import TernaryBlocks
from shoestring.quantise.kept import read_back, written

FORMATS: list[CodeFormat] = [
    *(
        IntegerGroups(code_bits=bits, group=32, symmetric=symmetric)
        for bits in (2, 3, 4, 8)
        for symmetric in (False, True)
    ),
    IntegerGroups(code_bits=3, group=0),
    IntegerGroups(code_bits=5, group=64, symmetric=True, clips=1),
    *(Microscaling(element=element) for element in KINDS),  # type: ignore[arg-type]
    PowerGroups(code_bits=4),
    PowerGroups(code_bits=3, group=16, exponent=0.5),
    AdaptiveGroups(code_bits=4),
    KBlocks(),
    TernaryBlocks(),
]
EACH = pytest.mark.parametrize(
    "form", FORMATS, ids=lambda form: json.dumps(dict(form.choice.options)) + form.choice.name
)


def matrix(rows: int = 5, columns: int = 256) -> Tensor:
    draw = torch.Generator().manual_seed(4)
    return torch.randn(rows, columns, generator=draw) * torch.rand(rows, 1, generator=draw).exp()


def test_every_format_has_a_place_in_this_table() -> None:
    assert {card.name for card in methods("quantise", "format")} == {form.choice.name for form in FORMATS}


@EACH
@pytest.mark.parametrize("columns", [256, 32, 45, 7])
def test_it_is_kept_and_comes_back(form: CodeFormat, columns: int) -> None:
    weight = matrix(columns=columns)
    made = form.encode(weight)
    assert made.nbytes <= form.size(*weight.shape)
    if not isinstance(form, AdaptiveGroups):
        assert made.nbytes == form.size(*weight.shape)
    values, tensors = written({"m": made})
    again = read_back(json.loads(json.dumps(values)), tensors)["m"]
    assert torch.equal(again.dequantise(), made.dequantise())
    assert again.format == made.format
    assert float((made.dequantise() - weight).norm() / weight.norm()) < (0.6 if form.bits < 3 else 0.3)
    if made.native is not None:  # the kernels' layout holds the very numbers
        assert torch.equal(made.native.values()[:, :columns], made.plain())


@pytest.mark.parametrize(
    "form", [form for form in FORMATS if not isinstance(form, PowerGroups)], ids=lambda form: str(form)
)
def test_each_code_is_the_nearest_there_is(form: CodeFormat) -> None:
    """Powers are rounded after the power: their reference is below."""
    weight = matrix()
    made = form.encode(weight)
    own, found = made.format, made.plain()
    fitted = own.part(made.parameters, 0, 256)
    part = own.group_of(256)
    codes = made.unpacked().reshape(-1, part)
    exact = weight.reshape(-1, part)
    off = (found.reshape(-1, part) - exact).abs()
    for step in (-1, 1):
        other = codes.int() + step
        there = (other >= 0) & (other < own.levels)
        if isinstance(own, Microscaling):
            half = own.levels // 2
            there &= other % half <= len(magnitudes(own.element)) - 1 if KINDS[own.element].exponent else other != half
            there &= (other // half) == (codes.int() // half)
        if isinstance(own, IntegerGroups) and own.symmetric and own.code_bits == 8:
            there &= other > 0
        moved = own.value(other.clamp(0, own.levels - 1).to(torch.uint8), fitted)
        assert bool((off[there] <= (moved - exact).abs()[there] + 1e-6).all())


@EACH
def test_what_has_no_code_is_refused_and_zeros_are_exact(form: CodeFormat) -> None:
    for bad in (math.nan, math.inf):
        weight = matrix()
        weight[1, 3] = bad
        with pytest.raises(ShoestringError, match="NaN or infinite"):
            form.encode(weight)
    assert not bool(form.encode(torch.zeros(3, 256)).dequantise().any())
    tiny = torch.full((2, 256), 1e-42)
    assert bool(form.encode(tiny).dequantise().isfinite().all())
    with pytest.raises(ShoestringError, match="of matrices"):
        form.encode(torch.zeros(3))
    if not isinstance(form, Microscaling):
        with pytest.raises(ShoestringError, match="too large"):
            form.encode(matrix() * 1e9)


def test_integers_are_those_of_the_formula() -> None:
    weight = matrix(3, 8)
    made = IntegerGroups(code_bits=3, group=4, clips=1).encode(weight).dequantise()
    for row in range(3):
        for first in (0, 4):
            part = weight[row, first : first + 4].numpy()
            low = np.float32(np.float16(part.min()))
            step = np.float32(np.float16((part.max() - low) / np.float32(7)))
            expected = np.clip(np.round((part - low) / step), 0, 7) * step + low
            assert np.allclose(made[row, first : first + 4].numpy(), expected, rtol=1e-6)


def test_more_ranges_are_never_worse() -> None:
    weight = matrix()
    for bits in (2, 3, 4):
        one, many = (
            float((IntegerGroups(code_bits=bits, clips=clips).encode(weight).dequantise() - weight).square().sum())
            for clips in (1, 12)
        )
        assert many <= one


def test_microscaling_is_that_of_the_specification() -> None:
    """The elements and scales, written out from the tables of the specification of the Open Compute Project."""
    assert magnitudes("fp4_e2m1").tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert magnitudes("fp6_e3m2")[[1, 3, 4, -1]].tolist() == [0.0625, 0.1875, 0.25, 28]
    assert magnitudes("fp6_e2m3")[[1, 8, -1]].tolist() == [0.125, 1, 7.5]
    assert float(magnitudes("fp8_e4m3")[-1]) == 448
    assert float(magnitudes("fp8_e5m2")[-1]) == 57344
    for element, (dtype, largest) in {
        "fp8_e4m3": (torch.float8_e4m3fn, 448.0),
        "fp8_e5m2": (torch.float8_e5m2, 57344.0),
    }.items():
        weight = matrix(4, 32)
        top = math.floor(math.log2(largest))
        power = 2.0 ** (weight.abs().amax(1, keepdim=True).log2().floor() - top)
        expected = (weight / power).clamp(-largest, largest).to(dtype).float() * power
        assert torch.equal(Microscaling(element=element).encode(weight).dequantise(), expected)  # type: ignore[arg-type]
    scale = 2.0 ** math.floor(math.log2(5.0))
    found = Microscaling(element="int8").encode(torch.tensor([[5.0, 1.0, -3.3] + [0.0] * 29])).dequantise()[0, :3]
    assert found.tolist() == [round(number / scale * 64) / 64 * scale for number in (5.0, 1.0, -3.3)]
    tie = Microscaling(element="fp4_e2m1").encode(torch.tensor([[6.0, 2.5, 0.25, 5.0, -1.25] + [0.0] * 27]))
    assert tie.dequantise()[0, :5].tolist() == [6, 2, 0, 4, -1]  # to the even mantissa


def test_powers_are_those_of_the_formula() -> None:
    weight, bits, a = matrix(3, 8), 3, 0.5
    made = PowerGroups(code_bits=bits, group=8, exponent=a).encode(weight).dequantise()
    top = 2 ** (bits - 1) - 1
    for row in range(3):
        largest = float(weight[row].abs().max().half())
        scale = largest**a / top
        for column in range(8):
            number = float(weight[row, column])
            code = min(round(abs(number) ** a / scale), top)
            assert float(made[row, column]) == pytest.approx(math.copysign((scale * code) ** (1 / a), number), abs=1e-5)


def test_the_exponent_is_the_best_of_those_tried() -> None:
    heavy = matrix(8, 64).sign() * matrix(8, 64).abs() ** 3
    chosen: Any = PowerGroups(code_bits=4).of(heavy)
    assert chosen.exponent < 0.7  # large and small weights far apart
    uniform = torch.linspace(-1, 1, 512).view(8, 64)[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    flat: Any = PowerGroups(code_bits=4, group=0).of(uniform)
    assert flat.exponent > chosen.exponent


def test_groups_are_as_fine_as_the_ranges_want() -> None:
    even = torch.ones(8, 256) * torch.tensor([1.0, -1.0]).repeat(128)
    assert AdaptiveGroups().of(even).group == 0
    outliers = matrix(8, 256) * 0.01
    outliers[:, 7] = 5.0
    assert AdaptiveGroups(smallest=32).of(outliers).group == 32


@pytest.mark.parametrize(("form", "bits"), [(FORMATS[0], 7), (Microscaling(), 5), (PowerGroups(), 7), (KBlocks(), 4)])
def test_a_width_that_there_is_none_of_is_refused(form: CodeFormat, bits: int) -> None:
    with pytest.raises(UsageError):
        form.at(bits)
