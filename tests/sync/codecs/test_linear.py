import math

import pytest
import reference_linear as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.sync.codecs.linear import Bits, Linear, Range
from shoestring.sync.codecs.step import best_steps

BITS: list[Bits] = [8, 4, 2, 1]
RANGES: list[Range] = ["mse", "absmax", "minmax"]
MAX_1960 = {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154}
"""Least squared error of a uniform grid for a normal distribution of variance 1 (Max 1960, table I)."""


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def laplace(*shape: int) -> Tensor:
    uniform = torch.rand(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 0.5
    return -(uniform.sign() * (1 - 2 * uniform.abs()).log()).float()


def heavy(*shape: int) -> Tensor:
    """Student's t of 3 degrees of freedom."""
    generator = torch.Generator().manual_seed(5)
    chi = torch.randn(3, *shape, generator=generator).square().sum(0)
    return torch.randn(*shape, generator=generator) / (chi / 3).sqrt()


def relative_loss(codec: Linear, values: Tensor) -> float:
    decoded = codec.decode(codec.encode(values), values.shape)
    return float((values - decoded).double().square().sum() / values.double().square().sum())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("range_", RANGES)
@pytest.mark.parametrize(
    ("shape", "scope"),
    [((6, 50), "row"), ((2, 5, 30), "row"), ((300,), "row"), ((7, 43), "block"), ((3, 80), "tensor")],
)
def test_every_entry_takes_the_nearest_level_of_the_grid_of_the_reference(
    bits: Bits, range_: Range, shape: tuple[int, ...], scope: str
) -> None:
    values = heavy(*shape) * 1e-3
    codec = Linear(bits=bits, range=range_, scope=scope, block=40)  # type: ignore[arg-type]
    decoded = codec.decode(codec.encode(values), shape)
    pairs = [reference.groups(each.flatten().double().tolist(), shape, scope, 40) for each in (values, decoded)]
    assert len(pairs[0]) == {"row": shape[0] if len(shape) > 1 else 1, "block": 8, "tensor": 1}[scope]
    for entries, found in zip(*pairs, strict=True):
        low, step = reference.grid(entries, bits, range_)
        rounding = 2**-8 * (2**bits - 1) * step  # of a scale kept in bfloat16, at the outermost level
        for value, level in zip(entries, found, strict=True):
            best = min(abs(value - (low + code * step)) for code in range(2**bits))
            assert abs(value - level) <= best + rounding
        stored = sorted(set(found))
        if range_ == "mse" and bits == 1:
            assert max(abs(level) for level in stored) == pytest.approx(reference.signs_scale(entries), rel=2**-8)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BITS), st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60))
def test_the_best_step_agrees_with_the_reference(bits: Bits, values: list[float]) -> None:
    found = float(best_steps(torch.tensor([values]), bits))
    expected = reference.best_step(values, bits)
    losses = [reference.loss(values, -(2**bits - 1) / 2 * step, step, bits) for step in (found, expected)]
    assert found == pytest.approx(expected, rel=1e-3) or losses[0] <= 1.01 * losses[1] + 1e-12


@pytest.mark.parametrize("make", [normal, laplace, heavy])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_no_step_is_much_better_than_the_best_one(make: type, bits: Bits) -> None:
    values: Tensor = make(1, 6000)  # more than one segment
    found = best_steps(values, bits)[:, None]
    levels = 2**bits

    def lost(step: Tensor) -> float:
        coded = ((values / step).floor() + 0.5).clamp(-(levels - 1) / 2, (levels - 1) / 2) * step
        return float((values - coded).square().sum())

    best = min(lost(found * factor) for factor in torch.logspace(-1.2, 1.2, 200, base=10).tolist())
    assert lost(found) <= 1.06 * best


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_normal_signal_loses_what_max_found(bits: Bits) -> None:
    assert relative_loss(Linear(bits=bits), normal(16, 4096)) == pytest.approx(MAX_1960[bits], rel=0.02)


@pytest.mark.parametrize("make", [normal, laplace, heavy])
@pytest.mark.parametrize("bits", [4, 2, 1])
def test_the_default_range_loses_least(make: type, bits: Bits) -> None:
    values: Tensor = make(64, 1024)
    lost = {range_: relative_loss(Linear(bits=bits, range=range_), values) for range_ in RANGES}
    assert lost["mse"] == min(lost.values()) or (bits == 4 and make is heavy)
    if bits == 2:
        assert lost["minmax"] > 2 * lost["mse"]


def test_one_outlier_spoils_its_own_block_alone() -> None:
    values = normal(4, 256)
    values[2, 200] = 1000
    decoded = Linear(bits=4, scope="block", block=64).encode(values)
    lost = (Linear(bits=4, scope="block", block=64).decode(decoded, (4, 256)) - values).square().view(16, 64).sum(1)
    assert [block for block, each in enumerate(lost.tolist()) if each > 3] == [11]


@pytest.mark.parametrize("bits", BITS)
def test_a_row_far_from_zero_keeps_its_range_with_minmax(bits: Bits) -> None:
    values = 1000 + 0.25 * torch.arange(2**bits).expand(3, -1)
    codec = Linear(bits=bits, range="minmax")
    assert torch.equal(codec.decode(codec.encode(values), values.shape), values)
    constant = torch.full((3, 5), 1.2345)
    assert torch.equal(codec.decode(codec.encode(constant), (3, 5)), constant)


def test_the_payload_stays_as_it_is() -> None:
    """Scales h first, 0.5 is 3F00 and 1.25 3FA0 in bfloat16; then the codes 0 3 2 1 and 0 3 2 1 by planes of two."""
    values = torch.tensor([[-1.5, 1.5, 0.5, -0.5], [-3.75, 3.75, 1.25, -1.25]])
    codec = Linear(bits=2, range="absmax")
    payload = codec.encode(values)
    assert payload.tolist() == [0x00, 0x3F, 0xA0, 0x3F, 0 | 2 << 2 | 0 << 4 | 2 << 6, 3 | 1 << 2 | 3 << 4 | 1 << 6]
    assert torch.equal(codec.decode(payload, (2, 4)), values)
    assert codec.encode(torch.zeros(1, 4)).tolist() == [0, 0, 0b10101010]


@pytest.mark.parametrize(("bits", "bytes_"), [(8, 2 * 6 + 300), (4, 2 * 6 + 150), (2, 2 * 6 + 75), (1, 2 * 6 + 38)])
def test_bytes_by_scope(bits: Bits, bytes_: int) -> None:
    assert Linear(bits=bits).payload_bytes((6, 50)) == bytes_
    assert Linear(bits=bits).payload_bytes((6, 5, 10)) == bytes_
    assert Linear(bits=bits, scope="tensor").payload_bytes((6, 50)) == bytes_ - 10
    assert Linear(bits=bits, scope="block", block=70).payload_bytes((6, 50)) == bytes_ - 2
    assert Linear(bits=bits, range="minmax").payload_bytes((6, 50)) == bytes_ + 36
    assert Linear(bits=bits).payload_bytes((0, 50)) == Linear(bits=bits).payload_bytes((6, 0)) == 0


@pytest.mark.parametrize("scale", [math.inf, math.nan, -1.0, 3e38])
@pytest.mark.parametrize("range_", RANGES)
def test_a_scale_that_cannot_be_one_is_refused(scale: float, range_: Range) -> None:
    codec = Linear(bits=4, range=range_)
    payload = codec.encode(normal(3, 10))
    dtype = torch.float32 if range_ == "minmax" else torch.bfloat16
    size = dtype.itemsize
    at = (5 if range_ == "minmax" else 2) * size
    payload[at : at + size] = torch.tensor([scale], dtype=dtype).view(torch.uint8)
    with pytest.raises(ValueError, match=r"not finite|scale below zero, or too large"):
        codec.decode(payload, (3, 10))


@pytest.mark.parametrize("wrong", [{"bits": 5}, {"scope": "column"}, {"block": 0}, {"range": "max"}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"linear: {next(iter(wrong))} = "):
        Linear(**wrong)  # type: ignore[arg-type]
