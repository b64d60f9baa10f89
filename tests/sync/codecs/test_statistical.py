import pytest
import reference_statistical as reference
import torch
from reference_linear import groups
from torch import Tensor

from shoestring.sync.codecs.histogram import distribution, keys
from shoestring.sync.codecs.linear import Bits
from shoestring.sync.codecs.statistical import Levels, Statistical

LEVELS: list[Levels] = ["quantile", "deviation", "lloyd"]
MAX_1960 = {1: 0.3634, 2: 0.1175, 4: 0.009497}
"""Least squared error of any grid for a normal distribution of variance 1 (Max 1960, table I)."""


def skewed(*shape: int) -> Tensor:
    """Not centred, one-sided in its tail, with ties."""
    generator = torch.Generator().manual_seed(6)
    return ((torch.randn(*shape, generator=generator).exp() - 0.5) * 64).round() / 64e3


def relative_loss(codec: Statistical, values: Tensor) -> float:
    decoded = codec.decode(codec.encode(values), values.shape)
    return float((values - decoded).double().square().sum() / values.double().square().sum())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("bits", [4, 2, 1])
@pytest.mark.parametrize(
    ("shape", "scope"),
    [((6, 50), "tensor"), ((3, 90), "row"), ((2, 4, 30), "row"), ((7, 43), "block"), ((130,), "row")],
)
def test_codebooks_and_codes_agree_with_the_reference(
    levels: Levels, bits: Bits, shape: tuple[int, ...], scope: str
) -> None:
    values = skewed(*shape)
    codec = Statistical(bits=bits, scope=scope, levels=levels, block=64)  # type: ignore[arg-type]
    payload = codec.encode(values)
    parts = groups(values.flatten().double().tolist(), shape, scope, 64)
    books = payload[: len(parts) * 2 << bits].clone().view(torch.bfloat16).double().view(len(parts), -1).tolist()
    found = groups(codec.decode(payload, shape).flatten().double().tolist(), shape, scope, 64)
    for entries, book, coded in zip(parts, books, found, strict=True):
        spread = max(entries) - min(entries)
        assert book == pytest.approx(reference.LEVELS[levels](entries, 2**bits), rel=2**-8, abs=2e-3 * spread)
        for value, level in zip(entries, coded, strict=True):
            best = book[reference.nearest(value, book)]
            assert level in book
            assert abs(value - level) <= abs(value - best) + 2**-10 * abs(value)


def test_eight_bits_agree_with_the_reference() -> None:
    values = normal(1, 3000)
    for scope in ("tensor", "row"):
        payload = Statistical(bits=8, scope=scope, levels="quantile").encode(values)
        book = payload[:512].clone().view(torch.bfloat16).double().tolist()
        expected = reference.quantile(values[0].double().tolist(), 256)
        assert book == pytest.approx(expected, rel=2**-7, abs=1e-3)


def test_bins_are_of_equal_probability_even_where_values_are_equal() -> None:
    values = torch.tensor([0.0] * 6 + [1.0] * 2)
    payload = Statistical(bits=2, scope="row", levels="quantile").encode(values)
    assert payload[:8].view(torch.bfloat16).tolist() == [0.0, 0.0, 0.0, 1.0]
    values = torch.tensor([4.0, 1.0, 2.0])
    payload = Statistical(bits=1, scope="row", levels="quantile").encode(values)
    assert payload[:4].view(torch.bfloat16).tolist() == pytest.approx([(1 + 2 / 2) / 1.5, (2 / 2 + 4) / 1.5], rel=2**-8)


def test_an_outlier_does_not_blur_the_other_levels() -> None:
    values = torch.cat([torch.tensor([-1e30]), torch.linspace(1, 2, 999)])
    for scope in ("tensor", "row"):
        decoded = Statistical(bits=4, scope=scope).encode(values)
        decoded = Statistical(bits=4, scope=scope).decode(decoded, (1000,))
        assert (decoded[1:] - values[1:]).abs().max() < 0.1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_lloyd_loses_about_the_least_there_is_of_a_normal_signal(bits: Bits) -> None:
    values = normal(128, 512)
    lost = {levels: relative_loss(Statistical(bits=bits, levels=levels), values) for levels in LEVELS}
    assert lost["lloyd"] == pytest.approx(MAX_1960[bits], rel=0.1 if bits == 4 else 0.02)
    assert lost["lloyd"] <= 1.001 * min(lost.values())


def test_a_histogram_is_as_good_as_a_sort() -> None:
    values = normal(1, 40000)
    for bits in (8, 4, 2):
        by_histogram = relative_loss(Statistical(bits=bits), values)
        assert by_histogram == pytest.approx(relative_loss(Statistical(bits=bits, scope="row"), values), rel=1e-2)


def test_the_histogram_counts_every_entry_in_order_of_value() -> None:
    values = torch.cat([normal(5000) * 10.0 ** torch.arange(-30, 20).repeat(100), torch.zeros(7), -torch.zeros(3)])
    found, points, counts = distribution(keys(values))
    assert counts.sum() == 5010
    assert (points.diff() > 0).all()
    place = torch.empty(1 << 19)
    place[found] = points.float()
    middle = place[keys(values)]
    assert ((middle - values).abs() <= values.abs() * 2**-11 + 1e-40).all()


@pytest.mark.parametrize(("bits", "bytes_"), [(8, 512 + 300), (4, 32 + 150), (2, 8 + 75), (1, 4 + 38)])
def test_bytes_by_scope(bits: Bits, bytes_: int) -> None:
    codebook = 2 << bits
    assert Statistical(bits=bits).payload_bytes((6, 50)) == bytes_
    assert Statistical(bits=bits, scope="row").payload_bytes((6, 50)) == bytes_ + 5 * codebook
    assert Statistical(bits=bits, scope="block", block=70).payload_bytes((6, 50)) == bytes_ + 4 * codebook
    assert Statistical(bits=bits).payload_bytes((6, 0)) == 0


def test_the_payload_stays_as_it_is() -> None:
    values = torch.tensor([[2.0, -1.0, 0.5, -4.0]])
    payload = Statistical(bits=2).encode(values)
    assert payload.tolist() == [0x80, 0xC0, 0x80, 0xBF, 0x00, 0x3F, 0x00, 0x40, 3 | 1 << 2 | 2 << 4 | 0 << 6]
    assert torch.equal(Statistical(bits=2).decode(payload, (1, 4)), values)


def test_a_level_that_is_not_finite_is_refused() -> None:
    payload = Statistical(bits=2).encode(normal(3, 10))
    payload[2:4] = torch.tensor([float("inf")], dtype=torch.bfloat16).view(torch.uint8)
    with pytest.raises(ValueError, match="a number in it that is not finite"):
        Statistical(bits=2).decode(payload, (3, 10))


@pytest.mark.parametrize("wrong", [{"bits": 5}, {"scope": "all"}, {"block": -1}, {"levels": "median"}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"statistical: {next(iter(wrong))} = "):
        Statistical(**wrong)  # type: ignore[arg-type]
