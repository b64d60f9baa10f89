"""Products with packed trits: right, and the same bits from every kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_bits import agreed
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError
from shoestring.lowbit import kernels
from shoestring.lowbit.activations import quantise_tokens
from shoestring.lowbit.packing import LAYOUTS, layout_named, pack, packed_bytes
from tests.examples import examples

SEEDS = st.integers(0, 2**31)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trits(rows: int, columns: int, chance: torch.Generator) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=chance)


def exact(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """In float64 from the definition: the product that the kernels round to float32, group by group."""
    quantised, scale = quantise_tokens(x)
    groups = scales.shape[1]
    width = codes.shape[1] // groups
    apart = codes.double().view(len(codes), groups, width)
    dots = torch.einsum("rgc,tgc->trg", apart, quantised.double().view(len(x), groups, width))
    return (dots * scales.double()).sum(-1) * scale.double()


@settings(max_examples=examples(60), deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    rows=st.integers(0, 150),
    columns=st.integers(0, 200),
    tokens=st.integers(0, 15),
    magnitude=st.integers(-44, 36),
    seed=SEEDS,
)
def test_any_shape(layout: str, rows: int, columns: int, tokens: int, magnitude: int, seed: int) -> None:
    chance = random(seed)
    codes, scales = trits(rows, columns, chance), torch.randn(rows, 1, generator=chance)
    x = torch.randn(tokens, columns, generator=chance) * 10.0**magnitude
    packed = pack(codes, layout)
    found = agreed(lambda: kernels.matmul(x, packed, scales, rows, columns, layout))
    assert found.shape == (tokens, rows)
    if columns:
        wanted = exact(x, codes, scales)
        torch.testing.assert_close(found.double(), wanted, rtol=2e-7, atol=2e-45)


@settings(max_examples=examples(30), deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    rows=st.integers(1, 80),
    blocks=st.integers(1, 13),
    groups=st.integers(2, 40),
    tokens=st.integers(1, 9),
    seed=SEEDS,
)
def test_many_groups(layout: str, rows: int, blocks: int, groups: int, tokens: int, seed: int) -> None:
    chance, columns = random(seed), blocks * groups * layout_named(layout).columns
    codes, x = trits(rows, columns, chance), torch.randn(tokens, columns, generator=chance)
    scales = torch.randn(rows, groups, generator=chance) * 10.0 ** torch.randint(
        -30, 10, (rows, groups), generator=chance
    )
    packed = pack(codes, layout)
    found = agreed(lambda: kernels.matmul(x, packed, scales, rows, columns, layout))
    wanted = exact(x, codes, scales)
    assert bool(((found - wanted).abs() <= 1e-6 * groups * (wanted.abs() + scales.abs().amax(1) * 127 * columns)).all())


@settings(max_examples=examples(60), deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 9),
    groups=st.integers(1, 5),
    tokens=st.integers(1, 6),
    magnitude=st.integers(-20, 20),
    even=st.booleans(),
    seed=SEEDS,
)
def test_it_is_within_half_a_step_of_activations_that_are_not_rounded(
    layout: str, rows: int, blocks: int, groups: int, tokens: int, magnitude: int, even: bool, seed: int
) -> None:
    """The bound that docs/packing.md states."""
    chance, columns = random(seed), blocks * groups * layout_named(layout).columns
    codes = trits(rows, columns, chance)
    x = torch.rand(tokens, columns, generator=chance) if even else torch.randn(tokens, columns, generator=chance)
    x *= 10.0**magnitude
    scales = torch.rand(rows, groups, generator=chance) + 0.01
    found = kernels.matmul(x, pack(codes, layout), scales, rows, columns, layout)
    weights = codes.double() * scales.double().repeat_interleave(columns // groups, 1)
    wrong = (found.double() - x.double() @ weights.t()).abs()
    reach = x.double().abs().amax(1, keepdim=True) * weights.abs().sum(1)
    assert bool((wrong <= reach * (1 / 254 + (groups + 4) * 2.0**-24)).all())


@settings(max_examples=examples(30), deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    rows=st.integers(1, 70),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 8),
    seed=SEEDS,
)
def test_any_bytes(layout: str, rows: int, columns: int, tokens: int, seed: int) -> None:
    """Bytes that stand for no trits are not looked for: whatever they give is the same everywhere, and no crash."""
    chance = random(seed)
    packed = torch.randint(0, 256, (packed_bytes(rows, columns, layout),), dtype=torch.uint8, generator=chance)
    scales, x = torch.randn(rows, 1, generator=chance), torch.randn(tokens, columns, generator=chance)
    agreed(lambda: kernels.matmul(x, packed, scales, rows, columns, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 2, 200])
def test_the_largest_sums_are_exact(layout: str, tokens: int) -> None:
    """All codes 127 and all trits equal; for the packing that sums multiples of trits, in all 131072 columns that there may be."""
    columns = 131072 if tokens < 3 else 2000
    signs = torch.tensor([1, -1, 1] + [0] * 14, dtype=torch.int8)
    packed = pack(signs[:, None].expand(17, columns).contiguous(), layout)
    x = torch.full((tokens, columns), 127.0)
    x[-1] = -127.0
    found = agreed(lambda: kernels.matmul(x, packed, torch.ones(17, 1), 17, columns, layout))
    assert torch.equal(found[-1], signs * -127.0 * columns)
    if tokens > 1:
        assert torch.equal(found[0], signs * 127.0 * columns)
    wild = torch.full((packed_bytes(17, columns, layout),), 255, dtype=torch.uint8)
    agreed(lambda: kernels.matmul(x, wild, torch.ones(17, 1), 17, columns, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_token_that_is_not_finite_is_nan_and_no_other(layout: str, bad: float, tokens: int) -> None:
    chance = random(1)
    codes, x = trits(33, 90, chance), torch.randn(tokens, 90, generator=chance)
    packed, scales = pack(codes, layout), torch.rand(33, 1, generator=chance)
    clean = agreed(lambda: kernels.matmul(x, packed, scales, 33, 90, layout))
    x[tokens // 2, 89] = bad
    found = agreed(lambda: kernels.matmul(x, packed, scales, 33, 90, layout))
    others = torch.arange(tokens) != tokens // 2
    assert bool(found[tokens // 2].isnan().all())
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_denormals_and_ties(layout: str) -> None:
    smallest = 2.0**-149
    rows = [
        [0.0] * 5,
        [smallest, 0.0, -smallest, 0.0, 0.0],  # s underflows to 0
        [200 * smallest, -190 * smallest, 95 * smallest, 0.0, 0.0],  # x / s is beyond 127
        [127.0, 0.5, 1.5, -2.5, 63.5],  # halves, to the even code
        [3.4e38, -3.4e38, 1e38, 1.0, -0.0],
    ]
    x = torch.tensor(rows)
    codes = torch.eye(5, dtype=torch.int8)
    packed = pack(codes, layout)
    found = agreed(lambda: kernels.matmul(x, packed, torch.ones(5, 1), 5, 5, layout))
    assert not found[:2].any()
    assert found[3].tolist() == [127.0, 0.0, 2.0, -2.0, 64.0]
    tiny = torch.full((5, 1), 1e-42)
    agreed(lambda: kernels.matmul(x, packed, tiny, 5, 5, layout))


def test_many_tokens_and_every_width_of_a_block_of_tokens() -> None:
    """More tokens than a tile keeps sums for; strided arguments."""
    chance = random(5)
    codes = trits(90, 640, chance)
    for tokens in (*range(1, 14), 192, 193, 400):
        x = torch.randn(640, tokens, generator=chance).t()
        for layout in LAYOUTS:
            packed, scales = pack(codes, layout), torch.rand(2, 90, generator=chance).t()
            found = agreed(lambda x=x, p=packed, s=scales, k=layout: kernels.matmul(x, p, s, 90, 640, k))  # type: ignore[misc]
            torch.testing.assert_close(found.double(), exact(x, codes, scales), rtol=1e-5, atol=1e-3)


def test_what_does_not_fit_is_refused() -> None:
    codes = trits(32, 100, random(0))
    packed, scales, x = pack(codes, "ternary1.6"), torch.ones(32, 1), torch.ones(2, 100)
    with pytest.raises(UsageError, match="ternary2"):
        kernels.matmul(x, packed, scales, 32, 100, "ternary7")
    with pytest.raises(ShoestringError, match="not a ternary2 matrix"):
        kernels.matmul(x, packed, scales, 32, 100, "ternary2")
    with pytest.raises(ShoestringError, match=r"float32 \[tokens, 100\], not float32 \[2, 99\]"):
        kernels.matmul(x[:, :99], packed, scales, 32, 100, "ternary1.6")
    with pytest.raises(ShoestringError, match="not float64"):
        kernels.matmul(x.double(), packed, scales, 32, 100, "ternary1.6")
    with pytest.raises(ShoestringError, match=r"scales of 32 rows .* not float32 \[31, 1\]"):
        kernels.matmul(x, packed, scales[1:], 32, 100, "ternary1.6")
    with pytest.raises(ShoestringError, match="multiple of the 20 columns"):
        kernels.matmul(x, packed, torch.ones(32, 2), 32, 100, "ternary1.6")
    with pytest.raises(ShoestringError, match="3 groups of 100 columns"):
        kernels.matmul(x, packed, torch.ones(32, 3), 32, 100, "ternary1.6")
    kernels.matmul(x, packed, torch.ones(32, 5), 32, 100, "ternary1.6")
