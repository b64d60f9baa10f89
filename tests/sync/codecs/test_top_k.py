import math

import pytest
import reference_top_k as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.sync.codecs.floats import Float32
from shoestring.sync.codecs.gaps import decode_places, encode_places, most_bytes
from shoestring.sync.codecs.histogram import largest
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.codecs.top_k import TopK, Values


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(8))


@settings(max_examples=50, deadline=None)
@given(
    st.data(),
    st.lists(st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-2, 2)), min_size=1),
)
def test_the_largest_are_kept_and_of_equal_ones_the_first(data: st.DataObject, values: list[float]) -> None:
    count = data.draw(st.integers(1, len(values)))
    whole = torch.tensor(values, dtype=torch.float32)
    assert largest(whole, count).tolist() == reference.largest(whole.tolist(), count)


def test_among_magnitudes_that_share_a_histogram_bin_the_largest_are_kept() -> None:
    values = 1 + torch.tensor([3, 10, 7, 8, 1, 9, 2]) * 2.0**-22
    assert len(set(values.tolist())) == 7
    values[1] *= -1
    assert largest(values, 3).tolist() == [1, 3, 5]


@pytest.mark.parametrize("fraction", [0.0, 0.013, 0.25, 1.0])
def test_kept_entries_are_exact_and_the_others_zero(fraction: float) -> None:
    values = normal(6, 5, 20)
    codec = TopK(fraction=fraction, values="float32")
    decoded = codec.decode(codec.encode(values), values.shape).flatten()
    kept = reference.largest(values.flatten().tolist(), max(1, round(600 * fraction)))
    expected = torch.zeros(600)
    expected[kept] = values.flatten()[kept]
    assert torch.equal(decoded, expected)


@pytest.mark.parametrize("values", ["8bit", "4bit", "2bit", "1bit"])
def test_values_are_coded_by_the_linear_codec(values: Values) -> None:
    whole = normal(40, 50)
    codec = TopK(fraction=0.1, values=values)
    decoded = codec.decode(codec.encode(whole), whole.shape).flatten()
    kept = reference.largest(whole.flatten().tolist(), 200)
    inner = Linear(bits=int(values[0]), scope="tensor")  # type: ignore[arg-type]
    assert torch.equal(decoded[kept], inner.decode(inner.encode(whole.flatten()[kept]), (200,)))
    assert decoded.count_nonzero() == 200


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.data())
def test_places_come_back_and_never_take_more_than_was_said(total: int, data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1, max_size=60)))
    payload = encode_places(torch.tensor(places), total)
    assert payload.numel() <= most_bytes(len(places), total)
    assert decode_places(payload, len(places), total).tolist() == places
    assert reference.places(payload.tolist(), len(places)) == places


@pytest.mark.parametrize(
    "places", [[0], [1999], [0, 1999], list(range(2000)), list(range(1000)), list(range(1999, 0, -9))]
)
def test_places_at_the_edges(places: list[int]) -> None:
    places.sort()
    payload = encode_places(torch.tensor(places), 2000)
    assert payload.numel() <= most_bytes(len(places), 2000)
    assert decode_places(payload, len(places), 2000).tolist() == places


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_places_take_little_more_than_their_entropy(share: float) -> None:
    total = 400_000
    places = largest(normal(total), int(share * total))
    bits = 8 * encode_places(places, total).numel() / places.numel()
    assert reference.entropy(share) * 0.98 < bits < reference.entropy(share) * 1.04 + 0.05
    assert 8 * most_bytes(places.numel(), total) / places.numel() < bits * 1.08 + 0.05


def test_the_worst_places_take_no_more_than_was_said() -> None:
    clusters = (torch.arange(0, 400_000, 40_000)[:, None] + torch.arange(400)).flatten()
    for places in (clusters, torch.arange(396_000, 400_000), torch.arange(99, 400_000, 100)):
        payload = encode_places(places, 400_000)
        assert torch.equal(decode_places(payload, 4000, 400_000), places)
        assert payload.numel() <= most_bytes(4000, 400_000) <= 4000 * (2 + math.log2(100)) / 8


def test_a_hundredth_with_two_bit_values_takes_a_tenth_of_a_bit_an_entry() -> None:
    values = normal(300, 1000)
    codec = TopK(fraction=0.01, values="2bit")
    assert 8 * codec.encode(values).numel() / 300_000 < 0.105
    assert 8 * codec.payload_bytes(values.shape) / 300_000 < 0.110


def test_the_payload_stays_as_it_is() -> None:
    """Values first; then b = 0 and the bitmap of 11 entries by planes."""
    values = torch.tensor([0.0, 2.0, 0.0, 0.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0])
    payload = TopK(fraction=0.25, values="float32").encode(values)
    assert torch.equal(payload[:12], Float32().encode(torch.tensor([2.0, -3.0, 4.0])))
    assert payload[12:].tolist() == [0, 0b100100, 0b000001]
    payload = encode_places(
        torch.tensor([3, 8, 16, 19, 26]), 27
    )  # gaps 3 4 7 2 6: b = 1, low bits, 01 001 0001 01 0001
    assert payload.tolist() == [1, 0b00101, 0b10110100, 0b00000001]


def damaged(payload: Tensor, at: int, value: int) -> Tensor:
    payload = payload.clone()
    payload[at] = value
    return payload


def test_places_that_cannot_be_are_refused() -> None:
    payload = encode_places(torch.tensor([3, 8, 16, 19, 26]), 27)
    for wrong, words in [
        (damaged(payload, 2, 0b10110000), "with 4 places"),
        (damaged(payload, 3, 0b00000011), "with 6 places"),
        (damaged(payload, 0, 200), "cannot be 5 places out of 27"),
        (damaged(payload, 0, 0), "with 7 places"),
        (damaged(damaged(payload, 2, 0b00110100), 3, 0b10000001), "place 28 of 27 entries"),
        (payload[:3], "with 4 places"),
        (payload[:2], "cannot be 5 places out of 27"),
        (payload[:0], "cannot be 5 places out of 27"),
        (torch.cat([payload, torch.zeros(9, dtype=torch.uint8)]), "cannot be 5 places out of 27"),
    ]:
        with pytest.raises(ValueError, match=words):
            decode_places(wrong, 5, 27)
    first_five_and_a_byte_more = torch.tensor([0, 0b111, 0b011], dtype=torch.uint8)
    assert encode_places(torch.arange(5), 27).tolist() == [0, 0b11111]
    with pytest.raises(ValueError, match="digits after the last"):
        decode_places(first_five_and_a_byte_more, 5, 27)


@pytest.mark.parametrize("wrong", [{"fraction": 1.5}, {"fraction": -0.1}, {"values": "3bit"}])
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"top_k: {next(iter(wrong))} = "):
        TopK(**wrong)  # type: ignore[arg-type]


def test_how_many_are_kept() -> None:
    codec = TopK(fraction=0.01)
    assert [codec.kept(shape) for shape in ((0,), (1,), (99,), (10, 20), (3, 0), ())] == [0, 1, 1, 2, 0, 1]
