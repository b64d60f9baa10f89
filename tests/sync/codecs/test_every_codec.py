"""What holds for every codec, whatever its options."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoestring.config import Choice, build, merge, overrides
from shoestring.method import methods
from shoestring.sync.codec import CODEC, Codec, shorthand

CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("bfloat16", {}),
    *(("linear", {"bits": bits}) for bits in (8, 4, 3, 2, 1)),
    *(("linear", {"bits": 2, "scope": "block", "block": block}) for block in (1, 7)),
    *(("linear", {"bits": bits, "scope": "tensor", "range": "absmax"}) for bits in (4, 1)),
    *(("linear", {"bits": bits, "range": "minmax"}) for bits in (8, 1)),
    *(("statistical", {"bits": bits}) for bits in (8, 4, 3, 2, 1)),
    *(("statistical", {"bits": 2, "scope": scope, "levels": "quantile", "block": 7}) for scope in ("row", "block")),
    ("statistical", {"bits": 4, "levels": "deviation"}),
    *(("top_k", {"fraction": share, "values": "float32"}) for share in (0.0, 0.3, 1.0)),
    *(("top_k", {"fraction": 0.1, "values": values}) for values in ("bfloat16", "2bit")),
]
SHAPES = [(), (1,), (0,), (0, 3), (3, 0), (5,), (7, 13), (3, 4, 5), (2, 3, 4, 5), (1, 300), (300, 1)]


@dataclass
class Link:
    codec: Annotated[Choice, CODEC]


def make(name: str, options: dict[str, object]) -> Codec:
    codec: Codec = Choice.of("sync", name, kind="codec", **options).build()
    return codec


CODECS = [pytest.param(make(*choice), id="-".join(map(str, [choice[0], *choice[1].values()]))) for choice in CHOICES]
every_codec = pytest.mark.parametrize("codec", CODECS)


def sample(shape: tuple[int, ...], scale: float = 1e-3) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return scale * torch.randn(shape, generator=generator)


def loss(codec: Codec, values: Tensor) -> float:
    """The energy of the error as a share of the signal's."""
    decoded = codec.decode(codec.encode(values), values.shape)
    return float((values.double() - decoded.double()).square().sum() / values.double().square().sum())


def test_all_registered_codecs_are_here() -> None:
    assert {card.name for card in methods("sync", "codec")} == {name for name, _ in CHOICES}
    assert CODEC.choice().name == "float32"


def test_a_word_of_bits_is_a_linear_codec() -> None:
    table = shorthand("2bit")
    codec = make(table.pop("name"), table)
    assert codec.payload_bytes((8, 100)) + codec.payload_bytes((3, 5)) == 8 * 2 + 200 + 3 * 2 + 4


@pytest.mark.parametrize(
    ("lower", "words"),
    [
        ("2bit", ["--codec.scope", "tensor"]),
        ("top_k", ["--codec", "2bit", "--codec.scope", "tensor"]),
        ({"name": "linear", "bits": 8, "scope": "tensor"}, ["--codec.bits", "2"]),
        ({"name": "top_k", "fraction": 0.5}, ["--codec.scope", "tensor", "--codec", "2bit"]),
    ],
    ids=str,
)
def test_a_word_of_bits_takes_options_and_is_laid_over_others(lower: Any, words: list[str]) -> None:
    codec = build(Link, merge({"codec": lower}, overrides(words))).codec
    assert (codec.name, codec.options["bits"], codec.options["scope"]) == ("linear", 2, "tensor")


@every_codec
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_tensor_comes_back_in_its_shape(codec: Codec, shape: tuple[int, ...]) -> None:
    values = sample(shape)
    before = values.clone()
    payload = codec.encode(values)
    assert payload.dtype == torch.uint8
    assert payload.ndim == 1
    size, most = payload.numel(), codec.payload_bytes(shape)
    assert size == most if codec.fixed_size else size <= most
    assert (values.numel() == 0) == (size == 0)
    decoded = codec.decode(payload, shape)
    assert decoded.dtype == torch.float32
    assert decoded.shape == shape
    assert decoded.isfinite().all()
    assert torch.equal(values, before)
    assert torch.equal(codec.encode(values), payload)


@every_codec
def test_payloads_do_not_share_memory_with_the_values(codec: Codec) -> None:
    values = sample((4, 9))
    payload = codec.encode(values)
    kept = payload.clone()
    values.zero_()
    assert torch.equal(payload, kept)
    decoded = codec.decode(payload, (4, 9))
    expected = decoded.clone()
    payload.zero_()
    assert torch.equal(decoded, expected)


@every_codec
def test_strides_types_and_graphs_change_nothing(codec: Codec) -> None:
    wide = sample((24, 30))
    payload = codec.encode(wide[::2, ::3].clone())
    assert torch.equal(codec.encode(wide[::2, ::3]), payload)
    assert torch.equal(codec.encode(wide[::2, ::3].clone().requires_grad_()), payload)
    assert torch.equal(codec.encode(wide[::2, ::3].double()), payload)
    assert torch.equal(codec.encode(wide.T.contiguous().T[::2, ::3]), payload)
    spread = torch.stack([payload, payload], 1)[:, 0]
    assert torch.equal(codec.decode(spread, (12, 10)), codec.decode(payload, (12, 10)))
    shifted = torch.cat([payload.new_zeros(1), payload])[1:]
    assert torch.equal(codec.decode(shifted, (12, 10)), codec.decode(payload, (12, 10)))


@every_codec
@pytest.mark.parametrize("shape", [(40, 2503), (80003,)], ids=str)
def test_the_number_of_threads_changes_nothing(codec: Codec, shape: tuple[int, ...]) -> None:
    values = sample(shape)
    if len(shape) == 1:  # a histogram of more bins than a thread takes
        values *= 10 ** torch.linspace(-20, 0, shape[0])
    payloads = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        payloads.append(codec.encode(values))
        assert torch.equal(codec.decode(payloads[0], shape), codec.decode(payloads[-1], shape))
    assert torch.equal(payloads[0], payloads[1])


@every_codec
@pytest.mark.parametrize("shape", [(), (3, 5), (1, 4100)], ids=str)
def test_zeros_stay_zeros(codec: Codec, shape: tuple[int, ...]) -> None:
    assert torch.equal(codec.decode(codec.encode(torch.zeros(shape)), shape), torch.zeros(shape))
    assert codec.decode(codec.encode(-torch.zeros(shape)), shape).abs().sum() == 0


@every_codec
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_the_scale_of_the_values_does_not_matter(codec: Codec, scale: float) -> None:
    values = sample((9, 400), 1.0)
    factor = 2.0 ** round(torch.tensor(scale).log2().item())
    plain = codec.decode(codec.encode(values), values.shape)
    scaled = codec.decode(codec.encode(values * factor), values.shape)
    torch.testing.assert_close(scaled, plain * factor, rtol=0, atol=0)


@every_codec
def test_the_largest_and_the_smallest_floats_are_finite_still(codec: Codec) -> None:
    most, least = torch.finfo(torch.float32).max, 2.0**-149
    for values in ([most] * 8, [most, -most] * 4, [most, 0.0, least, -1.0, -least, 1e-38], [least] * 4, [-most]):
        for shape in ((len(values),), (1, len(values)), (len(values), 1)):
            whole = torch.tensor(values).reshape(shape)
            payload = codec.encode(whole)
            assert payload.numel() <= codec.payload_bytes(shape)
            assert codec.decode(payload, shape).isfinite().all()


@every_codec
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_bytes_decode_or_are_refused(codec: Codec, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(SHAPES[1:9]))
    most = codec.payload_bytes(shape)
    size = most if codec.fixed_size and data.draw(st.booleans()) else data.draw(st.integers(0, most + 2))
    payload = torch.tensor(list(data.draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    assert refused(codec, payload, shape) or codec.payload_bytes(shape) >= size


@every_codec
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_torn_or_altered_payload_decodes_or_is_refused(codec: Codec, data: st.DataObject) -> None:
    shape = (7, 13)
    payload = codec.encode(sample(shape))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, payload.numel() - 1))] = data.draw(st.integers(0, 255))
    refused(codec, payload, shape)
    cut = data.draw(st.integers(0, payload.numel() - 1))
    assert refused(codec, payload[:cut], shape) or not codec.fixed_size
    assert refused(codec, torch.cat([payload, payload.new_zeros(1 + codec.payload_bytes(shape) - len(payload))]), shape)


def refused(codec: Codec, payload: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether decoding raises ValueError; if not, the tensor must be one that a codec can give."""
    try:
        decoded = codec.decode(payload, shape)
    except ValueError as error:
        assert "\n" not in str(error)
        return True
    assert decoded.shape == shape
    assert decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    return False


@every_codec
def test_what_is_no_payload_is_refused(codec: Codec) -> None:
    payload = codec.encode(sample((3, 4)))
    for wrong in (payload.to(torch.int32), payload[None], payload.bool()):
        with pytest.raises(ValueError, match="a payload is uint8 of one dimension"):
            codec.decode(wrong, (3, 4))
    with pytest.raises(ValueError, match=r"a payload of \d+ bytes, where the shape needs"):
        codec.decode(torch.zeros(1000, dtype=torch.uint8), (3, 4))


CONTRACTIONS = [
    functools.partial(make, "linear", {"bits": bits, "scope": scope, "block": 6})
    for bits, scope in [(1, "row"), (2, "tensor"), (2, "block"), (3, "row"), (4, "row"), (8, "tensor")]
]
CONTRACTIONS += [
    functools.partial(make, "statistical", {"bits": bits, "scope": scope, "levels": levels, "block": 6})
    for bits, scope, levels in [
        (1, "tensor", "quantile"),
        (2, "row", "lloyd"),
        (2, "tensor", "lloyd"),
        (4, "block", "deviation"),
    ]
]
CONTRACTIONS += [
    functools.partial(make, "top_k", {"fraction": 0.2, "values": values}) for values in ("float32", "2bit")
]


@pytest.mark.parametrize("maker", CONTRACTIONS, ids=lambda maker: str(maker.args))
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_coding_loses_less_than_the_signal(maker: Callable[[], Codec], data: st.DataObject) -> None:
    """|x - C(x)|^2 <= |x|^2, which error feedback needs of a codec in order to converge."""
    number = st.one_of(st.floats(-4, 4, width=32), st.just(0.0), st.sampled_from([1e-4, -100.0, 1.0]))
    values = data.draw(st.lists(number, min_size=1, max_size=24))
    rows = data.draw(st.sampled_from([rows for rows in (1, 2, 3) if len(values) % rows == 0]))
    whole = torch.tensor(values).reshape(rows, -1)
    if whole.double().square().sum() > 1e-60:
        assert loss(maker(), whole) <= 1 + 1e-5


@pytest.mark.gpu
@every_codec
@pytest.mark.parametrize("shape", [(40, 2503), (3, 4, 5), (0, 3), ()], ids=str)
def test_a_gpu_decodes_the_same_bits(codec: Codec, shape: tuple[int, ...]) -> None:
    values = sample(shape)
    payload = codec.encode(values.cuda())
    assert payload.is_cuda
    assert torch.equal(codec.encode(values.cuda()), payload)
    assert torch.equal(codec.decode(payload, shape).cpu(), codec.decode(payload.cpu(), shape))
    assert (
        loss(codec, values.cuda()) == pytest.approx(loss(codec, values), rel=1e-3, abs=1e-9) if values.numel() else True
    )
