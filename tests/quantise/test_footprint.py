"""What a model takes in use: what is counted is what is there."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.config import Choice
from shoestring.model import ModelConfig, Transformer
from shoestring.model.layout import SpanAt
from shoestring.quantise.engine import quantise_layers
from shoestring.quantise.folder import contents_of, overhead
from shoestring.quantise.footprint import footprint, live_bytes
from shoestring.quantise.formats.integer_groups import IntegerGroups
from tests.quantise import making

NANO = Choice.of("model", "nano", kind="embedding", rank=8)
SIZES: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "vocabulary": making.VOCABULARY, "context": 24}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tied": False},
    "nano": {"embedding": NANO},
    "embbert": {"embedding": NANO, "token_mixer": Choice.of("model", "efficient_attention", kind="token mixer")},
}


def test_the_most_that_is_alive_at_once_is_counted() -> None:
    old = torch.zeros(4096)
    with torch.no_grad(), live_bytes() as most:
        a = torch.zeros(1000)
        b = a + 1
        assert most[0] == 8000
        del a
        c = b.view(10, 100)  # a view, and what is written into, take no more
        b.add_(1)
        old.mul_(2)
        d = c @ c.T
        assert most[0] == 8000
        del b
        e = torch.zeros(1200)  # 4000 are held by the view
        assert most[0] == 4000 + 400 + 4800
        del c, d, e
        kept = torch.zeros(2301)
    assert most[0] == 9204
    assert len(kept) == 2301


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_those_of_the_file_and_the_cache_is_that_of_the_model(name: str) -> None:
    config = ModelConfig(**SIZES, **SHAPES[name])
    found = footprint(config)
    model = Transformer(config).eval()
    done = quantise_layers(model, making.text(), making.recipe(IntegerGroups().at(8), table_bits=8))
    contents = contents_of(model, {**done.tables, **done.matrices}, {})
    packed = sum(one.nbytes for one in contents.matrices.values())
    rest = sum(value.nbytes for value in contents.rest.values())
    assert found.weights == packed + rest <= packed + overhead(contents)
    assert found.cache == sum(layer.nbytes for layer in model.new_cache(1, 24).layers)
    assert found.bits == 8
    # logits, the hidden state, and the scores of one token are the least
    assert found.activations >= 4 * making.VOCABULARY
    assert found.total == found.weights + found.cache + found.activations


def test_what_is_not_quantised_is_counted_in_numbers() -> None:
    pooled = ModelConfig(**SIZES, span=(SpanAt("1", Choice.of("model", "byte_pool", kind="span")),))
    found = footprint(pooled)
    assert found.bits == 32
    assert found.weights == sum(p.nbytes for p in Transformer(pooled).parameters())


def test_counting_draws_nothing_from_the_generator(tmp_path: Path) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    footprint(ModelConfig(**SIZES))
    assert torch.equal(torch.rand(3), expected)
