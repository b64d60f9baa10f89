"""Averages of weights: the definition, what cannot be averaged refused, and models left as they were."""

import pytest
import torch
from torch import nn

from shoestring.errors import UsageError
from shoestring.model import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.sync.merging import merge, weighted_average

SHAPE = ModelConfig(layers=2, width=16, heads=2, vocabulary=11, context=8)


def models(count: int, tied: bool = True) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(Transformer(ModelConfig(layers=2, width=16, heads=2, vocabulary=11, context=8, tied=tied)))
        with torch.no_grad():
            for parameter in made[-1].parameters():
                parameter.normal_()
    return made  # type: ignore[return-value]


def test_weights_are_averaged_by_name() -> None:
    states = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 6.0])}, {"a": torch.tensor([8.0, 1.0])}]
    assert weighted_average(states)["a"].tolist() == [4.0, 3.0]
    assert weighted_average(states, [3, 1, 0])["a"].tolist() == [1.5, 3.0]
    assert weighted_average([{"a": torch.tensor([torch.nan])}, {"a": torch.tensor([5.0])}], [0, 1])["a"].tolist() == [
        5.0
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_merged_models_are_whole_and_the_merged_ones_untouched(tied: bool) -> None:
    parts = models(3, tied)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts]
    merged = merge(parts, [0.5, 0.25, 0.25])
    for name, tensor in merged.state_dict().items():
        expected = 0.5 * before[0][name] + 0.25 * before[1][name] + 0.25 * before[2][name]
        assert torch.allclose(tensor, expected, atol=1e-6), name
    for part, was in zip(parts, before, strict=True):
        assert all(torch.equal(tensor, was[name]) for name, tensor in part.state_dict().items())
    assert merge(parts[:1])(torch.zeros(1, 3, dtype=torch.int64)).equal(parts[0](torch.zeros(1, 3, dtype=torch.int64)))


def test_a_merge_of_copies_is_the_model_to_the_bit() -> None:
    (part,) = models(1)
    merged = merge([part] * 5, [0.1, 0.3, 0.2, 0.25, 0.15])
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, part.state_dict()[name]), name


def test_half_precision_is_rounded_once() -> None:
    states = [{"a": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, 1.0, 1.0078125)]
    exact = torch.tensor([(1 + 1 + 1.0078125) / 3], dtype=torch.float64).to(torch.bfloat16)
    assert torch.equal(weighted_average(states)["a"], exact)


def test_what_cannot_be_merged_is_refused_in_a_line() -> None:
    a, b = {"w": torch.zeros(2, 3)}, {"w": torch.zeros(3, 3)}
    with pytest.raises(UsageError, match=r"'w' is \(2, 3\) and \(3, 3\): experts of one size can"):
        weighted_average([a, b])
    with pytest.raises(UsageError, match="only one of them has 'v'"):
        weighted_average([a, {**a, "v": torch.zeros(1)}])
    with pytest.raises(UsageError, match="counts something, and differs"):
        weighted_average([{"n": torch.tensor(1)}, {"n": torch.tensor(2)}])
    wrong = {"1 weights for 2": [1.0], "not negative": [1, -1], "not all 0": [0, 0], "not neg": [1, float("nan")]}
    for words, weights in wrong.items():
        with pytest.raises(UsageError, match=words):
            weighted_average([a, a], weights)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([])
