"""Each function of integers beside a slow reference: Python's integers, or float64, over the whole range of what it takes."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.errors import ShoestringError, UsageError
from shoestring.quantise.integer_only import arithmetic, softmax
from shoestring.quantise.integer_only.arithmetic import (
    exponential,
    fixed_point,
    inverse_root,
    product,
    requantise,
    rounded_shift,
)
from shoestring.quantise.integer_only.curve import IntegerOnlyCurve
from shoestring.quantise.integer_only.linear import IntegerOnlyLinear
from shoestring.quantise.integer_only.norm import IntegerOnlyNorm
from shoestring.quantise.integer_only.ranges import Ranges
from shoestring.quantise.integer_only.softmax import SCORE, attended


def drawn(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(low: int, high: int, *shape: int, kind: torch.dtype = torch.int64, seed: int = 1) -> Tensor:
    """Random ones, both ends among them."""
    found = torch.randint(low, high + 1, shape, generator=drawn(seed))
    found.view(-1)[0], found.view(-1)[-1] = low, high
    return found.to(kind)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("shape", [(1, 16, 3), (2, 129, 33), (70, 64, 300)])
def test_products_are_exact_whatever_multiplies(
    shape: tuple[int, int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, inside, columns = shape
    monkeypatch.setattr(arithmetic, "_fast_products", lambda: fast)
    left = integers(-127, 127, rows, inside, kind=torch.int8)
    for right in (integers(-127, 127, columns, inside, kind=torch.int8, seed=2), torch.full((columns, inside), 127)):
        found = product(left, right.to(torch.int8))
        assert found.dtype == torch.int32
        assert torch.equal(found.long(), (left.long()[:, None] * right.long()[None]).sum(-1))
    wide = torch.zeros(rows, 3 * inside, dtype=torch.int8)  # a part of each row, as heads are
    wide[:, inside : 2 * inside] = left
    assert torch.equal(product(wide[:, inside : 2 * inside], left), product(left, left))


def test_a_machine_without_exact_products_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(left: Tensor, right: Tensor) -> Tensor:
        """Pairs of products of unsigned and signed numbers added up in 16 bits, as vpmaddubsw does."""
        pairs = ((left.long() + 128)[:, :, None] * right.long()[None]).unflatten(1, (-1, 2)).sum(2)
        return (pairs.clamp(-(1 << 15), (1 << 15) - 1).sum(1) - 128 * right.long().sum(0)).to(torch.int32)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not arithmetic._fast_products.__wrapped__()


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("factor", [1e-12, 3.1e-7, 0.01, 0.4999, 1.0, 77.3, 5e8])
def test_requantising_is_that_of_whole_numbers(factor: float, bits: int) -> None:
    multiplier, shift = fixed_point(torch.tensor([factor, factor / 3], dtype=torch.float64))
    assert 2**30 <= int(multiplier[0]) < 2**31 or shift == arithmetic.FAR
    values = integers(-(2**31) + 1, 2**31 - 1, 400, 2, kind=torch.int32)
    values[::2] >>= 20
    found = requantise(values, multiplier, shift, bits)
    assert found.dtype == arithmetic.TYPES[bits]
    most = 2 ** (bits - 1) - 1
    for row, made in zip(values.tolist(), found.tolist(), strict=True):
        exact = [(v * m + (1 << (shift - 1))) >> shift for v, m in zip(row, multiplier.tolist(), strict=True)]
        assert made == [max(-most, min(most, one)) for one in exact]
    if factor < 1:  # the multiplier is the factor to 31 bits, or to what a shift of 62 leaves
        wanted = (values.double() * torch.tensor([factor, factor / 3], dtype=torch.float64)).clamp(-most, most)
        assert float((found.double() - wanted).abs().max()) <= 0.5 + 2**31 * (factor * 2**-29 + 2.0**-63)


def test_factors_that_have_no_multiplier_are_refused() -> None:
    for wrong in (float("nan"), float("inf"), 2.0**30, -1.0):
        with pytest.raises(ShoestringError, match="no fixed-point multiplier"):
            fixed_point(torch.tensor([wrong]))
    assert fixed_point(torch.zeros(2))[0].tolist() == [0, 0]


def test_shifts_round_to_the_nearest_and_halves_up() -> None:
    values = torch.arange(-64, 65)
    for shift in (1, 2, 5):
        assert rounded_shift(values.clone(), shift).tolist() == [math.floor(v / 2**shift + 0.5) for v in range(-64, 65)]


def test_the_inverse_root_is_right_to_27_bits_for_every_size() -> None:
    powers = [1 << k for k in range(60)]
    known = sorted({max(1, min((1 << 60) - 1, p + d)) for p in powers for d in (-1, 0, 1)})
    values = torch.tensor([*known, (1 << 60) - 1, *integers(1, 2**40, 500).tolist(), *integers(1, 2**16, 500).tolist()])
    root, e = inverse_root(values)
    assert root.dtype == e.dtype == torch.int64
    found = root.double() / 2.0 ** (61 - e.double())
    assert float((found * values.double().sqrt() - 1).abs().max()) < 2**-27


def test_the_exponential_is_within_a_quarter_of_a_percent() -> None:
    down = torch.arange(0, 20 << 16, 7)
    found = exponential(down)
    exact = torch.exp2(-down.double() / 2**16)
    assert float((found.double() / 2**14 - exact).abs().max()) < 0.0025
    assert (int(found.min()), int(found.max())) == (0, 2**14 - 1)
    assert int(exponential(torch.tensor([2**50]))) == 0


@pytest.mark.parametrize("reach", [0.5, 6.0, 40.0])
@pytest.mark.parametrize(
    ("function", "bend"),
    [(F.silu, 0.5), (F.gelu, 0.8), (partial(F.gelu, approximate="tanh"), 0.8)],
    ids=["silu", "gelu", "tanh"],
)
def test_curves_are_right_at_every_number(function: Callable[[Tensor], Tensor], bend: float, reach: float) -> None:
    scale, curve = reach / 32767, IntegerOnlyCurve()
    curve.fill(function, scale)
    x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    found = curve(x)
    assert found.dtype == torch.int16
    exact = function(x.double() * scale)
    line = bend * (256 * scale) ** 2 / 8  # bend: the most of |f''|
    assert float((found.double() * scale - exact).abs().max()) <= 1.01 * scale + line


@pytest.mark.parametrize("reads_bits", [16, 23])
@pytest.mark.parametrize(("bits", "centred"), [(8, False), (8, True), (16, False)])
def test_norms_are_within_a_rounding(bits: int, centred: bool, reads_bits: int) -> None:
    width, reads, epsilon = 48, 3e-4, 1e-5
    writes = 9.0 / (2 ** (bits - 1) - 1)
    gain = torch.randn(width, generator=drawn(3))
    bias = torch.randn(width, generator=drawn(4)) if centred else None
    norm = IntegerOnlyNorm(width, centred, reads_bits)
    norm.fill(gain, bias, epsilon, reads, writes)
    least = 10 if centred and reads_bits == 23 else 1
    rows = [integers(-(2**k) + 1, 2**k - 1, 20, width, kind=torch.int32, seed=k) for k in range(least, reads_bits)]
    alone = torch.zeros(3, width, dtype=torch.int32)
    alone[0, 5], alone[1, 7] = 2 ** (reads_bits - 1) - 1, 1 - 2 ** (reads_bits - 1)
    x = torch.cat([*rows, alone, torch.full((2, width), 123, dtype=torch.int32)])
    real = x.double() * reads
    if centred:
        wanted = F.layer_norm(real, (width,), gain.double(), bias if bias is None else bias.double(), epsilon)
    else:
        wanted = F.rms_norm(real, (width,), gain.double(), epsilon)
    found = norm(x, bits)
    assert found.dtype == arithmetic.TYPES[bits]
    most = 2 ** (bits - 1) - 1
    assert float((found.double() - (wanted / writes).clamp(-most, most)).abs().max()) < (0.53 if bits == 8 else 1.1)


def test_a_norm_too_wide_for_its_sums_is_refused() -> None:
    with pytest.raises(UsageError, match="sums of squares"):
        IntegerOnlyNorm(1 << 15, False)


@pytest.mark.parametrize("spread", [0.0003, 0.003, 0.03])
def test_attention_is_that_of_softmax(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are right to 0.4 %, so that means of values up to 127 are right to one unit: flat or peaked, of many keys."""
    new, seen, width = 9, 700, 16
    queries = integers(-127, 127, new, width, kind=torch.int8)
    keys, values = (integers(-127, 127, seen, width, kind=torch.int8, seed=seed) for seed in (2, 3))
    last = torch.arange(seen - new, seen)
    last[0] = 0  # sees one key alone
    multiplier, shift = fixed_point(torch.tensor(spread * SCORE, dtype=torch.float64))
    given = keys, values, last, multiplier, torch.tensor(shift, dtype=torch.int32)
    found = attended(queries, *given)
    assert found.dtype == torch.int64
    monkeypatch.setattr(softmax, "PAIRS", 2 * seen)  # two queries at a time
    assert torch.equal(attended(queries, *given), found)
    scores = spread * (queries.double() @ keys.double().T)
    scores.masked_fill_(torch.arange(seen) > last[:, None], -math.inf)
    wanted = scores.softmax(1) @ values.double()
    assert float((found.double() / 256 - wanted).abs().max()) < 1
    assert torch.equal(found[0], values[0].long() << 8)


def test_a_linear_layer_has_a_scale_a_row_and_a_bias() -> None:
    weight = torch.randn(1500, 40, generator=drawn()) * torch.logspace(-3, 1, 1500)[:, None]
    weight[7] = 0
    bias = torch.randn(1500, generator=drawn(2))
    layer = IntegerOnlyLinear(40, 1500, bias=True)
    writes = (weight.abs().sum(1) + bias.abs()) / 32767
    layer.fill(weight, bias, 0.02, writes)
    x = integers(-127, 127, 2, 5, 40, kind=torch.int8)
    found = layer(x, 16)
    assert (found.dtype, found.shape) == (torch.int16, (2, 5, 1500))
    wanted = F.linear(x.double() * 0.02, weight.double(), bias.double())
    step = weight.abs().amax(1) / 127
    slack = 0.5 * step * (x.double() * 0.02).abs().sum(-1, keepdim=True) + writes + 0.01 * step
    inside = wanted.abs() < 32767 * writes
    assert bool((((found * writes - wanted).abs() <= slack) | ~inside).all())
    assert float(inside.double().mean()) > 0.5
    with pytest.raises(ShoestringError, match="NaN or infinite"):
        layer.fill(torch.full_like(weight, torch.nan), None, 1.0, 1.0)


def test_ranges_are_clipped_where_that_loses_less() -> None:
    ranges = Ranges().under("part")
    ranges.look("bell", torch.cat((torch.randn(30_000, generator=drawn()), torch.tensor([9.0])))[:, None])
    ranges.look("even", torch.linspace(-2, 2, 1001)[:, None])
    ranges.look("none", torch.zeros(5, 3))
    assert 0.2 * 9 / 127 <= ranges.eight("bell") < 0.9 * 9 / 127
    assert ranges.eight("even") == pytest.approx(2 / 127, rel=0.02)
    assert ranges.eight("none") == ranges.wide(16, "none") == 1.0
    assert ranges.wide(16, "bell") == pytest.approx(18 / 32767)
    assert ranges.uneven("none").tolist() == [1, 1, 1]
    ranges.look("steep", torch.tensor([[1.0, -100.0, 0.0], [0.5, 3.0, 0.0]]))
    uneven = ranges.uneven("steep")
    assert float(uneven[1] / uneven[0]) == pytest.approx(10)  # the root of the ratio
    assert float(uneven[1] / uneven[2]) == pytest.approx(100)  # one that was never seen has its least share
    assert float(uneven.log().sum()) == pytest.approx(0, abs=1e-9)
    assert ranges.wide(16, "steep", uneven) == pytest.approx(200 / float(uneven[1]) / 32767)
    assert ranges.eight("steep", uneven) <= 100 / float(uneven[1]) / 127
    ranges.look("even", torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ShoestringError, match=r"part\.even is not finite"):
        ranges.eight("even")
    with pytest.raises(ShoestringError, match=r"part\.more was not seen"):
        ranges.wide(16, "more")
