"""Tensors that are encoded as one come out as if each had been encoded by itself, in as many bytes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import Sparse
from torch import Tensor

from shoestring.sync.codecs import pieces
from shoestring.sync.codecs.floats import BFloat16, Float32
from shoestring.sync.codecs.linear import Linear
from shoestring.sync.codecs.statistical import Statistical
from shoestring.sync.codecs.top_k import TopK
from shoestring.sync.message import BodyLayout

CODECS = [
    Float32(),
    BFloat16(),
    *(Linear(bits=bits) for bits in (8, 3, 2, 1)),
    Linear(range="minmax"),
    Linear(scope="tensor"),
    Statistical(scope="row"),
    Statistical(),
    TopK(fraction=0.3),
    Sparse(),
]
SHAPES = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 3, 7, 40]), min_size=0, max_size=3).map(tuple), min_size=1, max_size=7
)


def tensors_of(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{type(codec).__name__} {codec.rowwise}")
@settings(max_examples=25, deadline=None)
@given(shapes=SHAPES, together=st.sampled_from([1, 60, 1 << 22]))
def test_each_tensor_comes_out_as_it_would_alone(codec: Any, shapes: list[tuple[int, ...]], together: int) -> None:
    tensors = tensors_of(shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "TOGETHER", together)
        layout = BodyLayout(codec, shapes)
        body, shares = layout.pack(tensors)
        found = layout.unpack(body, torch.device("cpu"))
    for tensor, out in zip(tensors, found, strict=True):
        alone = codec if pieces.compressed(tensor.shape) else Float32()
        assert torch.equal(out, alone.decode(alone.encode(tensor), tensor.shape))
        assert out.shape == tensor.shape
    assert sum(shares) == body.numel() - (0 if layout.fixed else 4 * len(layout.pieces))
    assert not layout.fixed or body.numel() == layout.nbytes


def test_a_model_of_many_layers_is_a_few_pieces() -> None:
    layer = [(192, 64), (64, 64), (256, 64), (64, 128), (64,), (64,)]
    shapes = [(288, 64), *layer * 12, (64,)]
    layout = BodyLayout(Linear(), shapes)
    assert [piece.shape(len(piece.members)) for piece in layout.pieces] == [
        (288 + 12 * (192 + 64 + 256), 64),
        (12 * 64, 128),
        (25 * 64,),
    ]
    _, shares = layout.pack(tensors_of(shapes))
    assert shares[0] == Linear().payload_bytes((288, 64))
    assert shares[-1] == 4 * 64


def test_large_tensors_stay_apart() -> None:
    half = pieces.TOGETHER // 2 // 64
    shapes = [(half, 64), (half, 64), (1, 64), (4 * half, 64), (1, 64)]
    assert [piece.members for piece in BodyLayout(Float32(), shapes).pieces] == [[0, 1], [2], [3], [4]]
