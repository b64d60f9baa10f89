"""A model in stages is the model."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from shoestring.errors import UsageError
from shoestring.model import ModelConfig
from shoestring.model.stages import cut
from shoestring.model.transformer import Transformer


def test_the_stages_together_are_the_model_and_share_its_weights() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"layers": 4, "width": 32, "heads": 2, "vocabulary": 50, "context": 16}
    model = Transformer(ModelConfig(**shape, tied=False, input_scale=0.5, output_scale=2.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    inputs, targets = torch.randint(50, (2, 2, 16))
    whole = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    first, stages, last = cut(model, 2)
    x = first(inputs)
    for stage in stages:
        x = stage(x)
    torch.testing.assert_close(last(x, targets), whole)
    parts = [first, *stages, last]
    assert {id(p) for part in parts for p in part.parameters()} == {id(p) for p in model.parameters()}
    assert sum(len(list(part.parameters())) for part in parts) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("layers", "tied", "stages", "words"),
    [(4, True, 2, "tied model cannot be cut"), (4, False, 3, "4 layers do not divide into 3"), (4, False, 0, "into 0")],
)
def test_what_cannot_be_cut_is_refused(layers: int, tied: bool, stages: int, words: str) -> None:
    model = Transformer(ModelConfig(layers=layers, width=32, heads=2, vocabulary=50, context=16, tied=tied))
    with pytest.raises(UsageError, match=words):
        cut(model, stages)
