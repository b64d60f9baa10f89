"""One table for every registered number format, with every kind of block it may have a scale for."""

import math
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import Format, Quantised, lower
from shoestring.lowbit.formats.integer import Integer
from shoestring.lowbit.formats.mx import MX
from shoestring.lowbit.formats.statsq import StatsQ
from shoestring.lowbit.formats.ternary import Ternary
from shoestring.method import Card, methods
from shoestring.quantise.formats.microscaling import Microscaling

CARDS = [card for card in methods("lowbit", "format") if card.name != "none"]
BLOCKS: list[dict[str, Any]] = [{}, {"shards": 2}, {"scale": "row"}, {"scale": "group", "group": 4}]
FORMATS = [card.target(**blocks) for card in CARDS for blocks in BLOCKS]
EVERY = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
EACH = pytest.mark.parametrize("form", FORMATS, ids=str)

WEIGHTS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Any float32 numbers; the rows are even and the columns a multiple of 4 or fewer, so that every format divides them."""
    rows, columns = draw(st.sampled_from([2, 4, 6])), draw(st.sampled_from([1, 2, 3, 4, 8]))
    numbers = draw(st.lists(WEIGHTS, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(numbers, dtype=torch.float32).view(rows, columns)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))


def blocks_of(form: Format, weight: Tensor) -> list[tuple[list[int], list[int]]]:
    """The rows and columns of each block, written out."""
    rows, columns = weight.shape
    if form.scale == "row":
        return [([row], list(range(columns))) for row in range(rows)]
    if form.scale == "group":
        size = min(form.group, columns)
        return [([row], list(range(at, at + size))) for row in range(rows) for at in range(0, columns, size)]
    height = rows // form.shards
    return [(list(range(at, at + height)), list(range(columns))) for at in range(0, rows, height)]


def test_the_table_holds_the_formats() -> None:
    assert {card.name for card in CARDS} >= {"ternary", "integer"}


@EACH
@settings(max_examples=40)
@given(weight=matrices())
def test_fake_is_what_quantise_stands_for_bit_for_bit(form: Format, weight: Tensor) -> None:
    try:
        found = form.quantise(weight)
    except ShoestringError as error:
        assert "infinite in float32" in str(error)
        return
    assert found.codes.dtype == torch.int8
    assert int(found.codes.abs().max()) <= form.largest
    assert torch.isfinite(found.scales).all()
    assert same_bits(form.fake(weight), found.dequantise())
    blocks, groups = form.groups(*weight.shape)
    assert found.scales.shape == (len(weight), groups)
    assert blocks == len(blocks_of(form, weight))


def test_a_ternary_scale_is_a_number_of_eleven_bits_however_small_or_large() -> None:
    for size in (1e-30, 1e-6, 1.0, 7e4, 1e30):
        scale = Ternary(epsilon=1e-38).quantise(torch.full((1, 1), 1.2345 * size)).scales.double()
        share = torch.frexp(scale).mantissa * 2**11
        assert float(share) == round(float(share))
        assert abs(float(scale) / (1.2345 * size) - 1) <= 2**-11


@EACH
def test_against_the_formula_written_out(form: Format) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 8) * 0.05
    found, expected = form.quantise(weight).dequantise(), torch.zeros(6, 8)
    for rows, columns in blocks_of(form, weight):
        numbers = [weight[row, column].item() for row in rows for column in columns]
        if isinstance(form, Ternary):
            scale = float(numpy.float16(1e-5 + math.fsum(map(abs, numbers)) / len(numbers)))
        elif isinstance(form, MX):
            scale = 2.0 ** (math.floor(math.log2(max(map(abs, numbers)))) - 2)  # of FP4
        elif isinstance(form, StatsQ):
            scale = 2 * math.fsum(map(abs, numbers)) / len(numbers)
        else:
            scale = max(map(abs, numbers)) / (2 ** (form.bits - 1) - 1)
        for row in rows:
            for column in columns:
                if isinstance(form, StatsQ):
                    n = 2 ** (form.bits - 1)
                    place = round(n * max(-1, min(1 - 1e-6, weight[row, column].item() / scale)) - 0.5)
                    expected[row, column] = scale * (place + 0.5) / n
                    continue
                if isinstance(form, MX):
                    number = weight[row, column].item()
                    element = min((0, 0.5, 1, 1.5, 2, 3, 4, 6), key=lambda one: abs(abs(number) / scale - one))
                    expected[row, column] = math.copysign(scale * element, number)
                    continue
                code = round(weight[row, column].item() / scale)  # Python rounds halves to even too
                expected[row, column] = scale * (max(-1, min(1, code)) if isinstance(form, Ternary) else code)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_passes_straight_through(form: Format, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    weight = (torch.randn(4, 8) * torch.tensor([0.0, 1e-3, 1.0, 30.0])[:, None]).to(dtype).requires_grad_()
    arriving = torch.randn(4, 8).to(dtype)
    quantised = form.fake(weight)
    assert quantised.dtype == dtype
    quantised.backward(arriving)
    assert weight.grad is not None
    assert torch.equal(weight.grad, arriving)


@EACH
def test_zeros_and_denormals_have_codes_and_finite_scales(form: Format) -> None:
    tiny = torch.finfo(torch.float32).smallest_normal
    for weight in (torch.zeros(4, 8), torch.full((4, 8), tiny / 2**20), torch.full((4, 8), 2.0**-149)):
        found = form.quantise(weight)
        assert torch.isfinite(found.scales).all()
        assert (found.dequantise() - weight).abs().max() <= tiny
    assert not form.quantise(torch.zeros(4, 8)).codes.any()


@EACH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_stays_seen_in_training(form: Format, bad: float) -> None:
    weight = torch.ones(4, 8)
    weight[1, 2] = bad
    with pytest.raises(ShoestringError, match="a weight is NaN or infinite"):
        form.quantise(weight)
    assert not torch.isfinite(form.fake(weight)).all()


def test_a_scale_beyond_float32_is_refused() -> None:
    with pytest.raises(ShoestringError, match="too large"):
        Ternary().quantise(torch.full((2, 2), torch.finfo(torch.float32).max))


@EVERY
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 3), (0, 4), (4, 0), (0, 0)])
def test_any_shape(card: Card, shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    weight = torch.randn(shape)
    for form in (card.target(), card.target(scale="row"), card.target(scale="group")):
        found = form.quantise(weight)
        assert found.codes.shape == shape
        assert found.scales.shape == (shape[0], 1)
        assert same_bits(form.fake(weight), found.dequantise())


@EACH
def test_only_matrices(form: Format) -> None:
    with pytest.raises(ShoestringError, match=r"of matrices.*\(3,\)"):
        form.quantise(torch.ones(3))


@EVERY
def test_blocks_that_do_not_divide_are_refused(card: Card) -> None:
    with pytest.raises(UsageError, match="shards = 2 do not divide 3 rows"):
        card.target(shards=2).quantise(torch.ones(3, 4))
    with pytest.raises(UsageError, match="group = 4 does not divide 6 columns"):
        card.target(scale="group", group=4).quantise(torch.ones(3, 6))
    with pytest.raises(UsageError, match="shards = 2 are of scale = tensor"):
        card.target(scale="row", shards=2)


@EACH
def test_trains_a_tiny_model_to_a_lower_loss(form: Format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 12))
    lower(model, form)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(torch.arange(12)), (torch.arange(12) + 1) % 12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@EVERY
def test_a_bad_argument_gets_one_clear_line(card: Card) -> None:
    for option in card.options().model_fields:
        with pytest.raises(ValueError, match=option):
            card.target(**{option: "nonsense"})
        with pytest.raises(UsageError, match=rf"{card.name}\.{option}"):
            Choice.of("lowbit", card.name, kind="format", **{option: "nonsense"})
    assert "arXiv:" in card.paper


def test_bits() -> None:
    assert Ternary().bits == pytest.approx(1.585, abs=1e-3)
    assert [Integer(bits=bits).largest for bits in range(2, 9)] == [1, 3, 7, 15, 31, 63, 127]
    for bits in (1, 9):
        with pytest.raises(ValueError, match="bits"):
            Integer(bits=bits)


def test_more_bits_are_nearer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 32)
    errors = [(Integer(bits=bits, scale="row").fake(weight) - weight).abs().mean() for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("codes", "scales", "said"),
    [
        (torch.zeros(2, 4), torch.ones(2, 1), "codes are int8"),
        (torch.zeros(2, 4, dtype=torch.int8), torch.ones(2, 1).double(), "scales float32"),
        (torch.zeros(2, 4, dtype=torch.int8), torch.ones(3, 1), "cannot have scales"),
        (torch.zeros(2, 4, dtype=torch.int8), torch.ones(2, 0), "cannot have scales"),
        (torch.zeros(2, 4, dtype=torch.int8), torch.ones(2, 3), "4 columns do not divide into 3 groups"),
    ],
)
def test_codes_and_scales_that_do_not_fit_are_refused(codes: Tensor, scales: Tensor, said: str) -> None:
    with pytest.raises(ShoestringError, match=said):
        Quantised(codes, scales)


@pytest.mark.parametrize("element", ["int8", "fp6_e2m3", "fp4_e2m1"])
def test_what_is_trained_for_mx_is_what_is_kept_in_mx(element: Any) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [[1], [9], [1e-3], [0], [2], [6]]
    )
    trained = MX(element=element, scale="group", group=32).quantise(weight).dequantise()
    assert torch.equal(trained, Microscaling(element=element).encode(weight).dequantise())
