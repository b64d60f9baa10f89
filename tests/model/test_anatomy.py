"""Every axis names each weight that it slices, and what is left along it is the weight of a smaller model."""

import math
from collections import Counter

import pytest
import torch

from shoestring.errors import UsageError
from shoestring.model import ModelConfig, Transformer

KINDS = ("width", "vocabulary", "head", "key_value_head", "hidden")


def test_slices_lie_within_their_weights(model: Transformer) -> None:
    known = dict(model.named_parameters())
    for kind in KINDS:
        for axis in model.anatomy().axes(kind):
            assert axis.slices
            for one in axis.slices:
                assert one.start + axis.size * one.unit <= known[one.name].shape[one.dim], (kind, one)


def test_every_weight_is_cut_along_each_of_its_dimensions(model: Transformer) -> None:
    """The lengths that the axes cover add up to those of every weight, but for gains of single heads."""
    covered: Counter[tuple[str, int]] = Counter()
    for kind in KINDS:
        for axis in model.anatomy().axes(kind):
            for one in axis.slices:
                covered[one.name, one.dim] += axis.size * one.unit
    for name, parameter in model.named_parameters():
        if "query_norm" in name or "key_norm" in name:
            continue
        for dim, size in enumerate(parameter.shape):
            assert covered[name, dim] == size, (name, dim)


def test_matrices_are_those_of_the_blocks(model: Transformer) -> None:
    found = {matrix.name: matrix for matrix in model.anatomy().matrices()}
    blocks = {name for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2}
    assert {f"{name}.weight" for name in found} == blocks
    assert {matrix.layer for matrix in found.values()} == set(range(len(model.blocks)))
    assert all(math.prod(m.weight.shape) == model.get_submodule(name).weight.numel() for name, m in found.items())  # type: ignore[operator]


def test_layers_that_are_kept_compute_as_they_did() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(layers=4, width=16, heads=2, vocabulary=20, context=8))
    blocks = list(model.blocks)
    model.anatomy().keep_layers([2, 0])
    assert list(model.blocks) == [blocks[2], blocks[0]]
    assert model.config.layers == model.about.layers == 2
    assert len(model.new_cache(1, 4).layers) == 2
    for wrong in ([], [0, 0], [5]):
        with pytest.raises(UsageError, match="numbers from 0 to 1"):
            model.anatomy().keep_layers(wrong)
