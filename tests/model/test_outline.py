"""An outline has the shapes of a model, no values, and needs none of torch's compiler."""

import pytest
import torch

from shoestring.config import build
from shoestring.model import ModelConfig, Transformer
from shoestring.model.outline import outline

SIZES = {"layers": 1, "width": 32, "heads": 2, "vocabulary": 50, "context": 16}


@pytest.mark.parametrize("shape", [{}, {"token_mixer": {"name": "attention", "rotary_share": 0.5}}])
def test_it_has_the_shapes_and_no_values(shape: dict[str, object]) -> None:
    config = build(ModelConfig, {**SIZES, **shape})
    with outline():
        drawn = Transformer(config)
    real = Transformer(config)
    for (name, one), (other, two) in zip(
        [*drawn.named_parameters(), *drawn.named_buffers()],
        [*real.named_parameters(), *real.named_buffers()],
        strict=True,
    ):
        assert (name, one.shape, one.dtype, one.device.type) == (other, two.shape, two.dtype, "meta")


def test_it_leaves_what_is_outside_alone() -> None:
    with outline():
        pass
    assert torch.arange(3).tolist() == [0, 1, 2]
    assert torch.nn.init.ones_(torch.empty(2)).tolist() == [1, 1]
    assert torch.nn.init.normal_(torch.zeros(9)).abs().sum() > 0
