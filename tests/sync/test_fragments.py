from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import Tower
from torch import nn

from shoestring.errors import UsageError
from shoestring.sync.fragments import Fragments


def layers_of(model: nn.Module, fragments: Fragments) -> list[list[int]]:
    cut = fragments.of(model)
    return [sorted({int(name.split(".")[1]) for name, _ in part if name.startswith("blocks.")}) for part in cut]


def test_the_patterns_of_the_paper() -> None:
    model = Tower(layers=6)
    assert layers_of(model, Fragments("sequential", 3)) == [[0, 1], [2, 3], [4, 5]]
    assert layers_of(model, Fragments("strided", 3)) == [[0, 3], [1, 4], [2, 5]]
    assert layers_of(model, Fragments("sequential", 4)) == [[0], [1, 2], [3], [4, 5]]
    assert layers_of(model, Fragments()) == [[0, 1, 2, 3, 4, 5]]


@settings(max_examples=60, deadline=None)
@given(layers=st.integers(1, 9), kind=st.sampled_from(["sequential", "strided"]), data=st.data())
def test_every_parameter_is_in_one_fragment_in_the_order_of_the_model(
    layers: int, kind: Any, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, layers + 1))
    model = Tower(layers=layers)
    cut = Fragments(kind, count).of(model)
    assert len(cut) == count
    assert all(cut)
    names = [name for name, _ in model.named_parameters()]
    assert sorted(name for part in cut for name, _ in part) == sorted(names)
    for part in cut:
        places = [names.index(name) for name, _ in part]
        assert places == sorted(places)
    sizes = [len(own) for own in layers_of(model, Fragments(kind, count))]
    assert max(sizes) - min(sizes) <= 1


def test_what_is_outside_the_layers_goes_where_there_is_least() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 8)  # 80 elements: to the first of equals
            self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))  # 16 each
            self.head = nn.Linear(8, 7, bias=False)  # 56: to the second
            self.norm = nn.LayerNorm(4)  # 4 + 4: to the third

    cut = Fragments("strided", 3).of(Uneven())
    assert [[name for name, _ in part] for part in cut] == [
        ["embedding.weight", "blocks.0.weight"],
        ["blocks.1.weight", "head.weight"],
        ["blocks.2.weight", "norm.weight", "norm.bias"],
    ]


def test_tied_and_frozen_parameters() -> None:
    model = Tower()
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.embedding.weight
    model.blocks[2].weight = model.blocks[0].weight
    model.norm.bias.requires_grad_(False)
    names = [name for part in Fragments("strided", 2).of(model) for name, _ in part]
    assert len(names) == len(set(names))
    assert not {"head.weight", "blocks.2.weight", "norm.bias"} & set(names)
    assert {"embedding.weight", "blocks.0.weight", "blocks.2.bias"} <= set(names)


def test_lists_within_layers_are_not_the_layers() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Experts() for _ in range(2))

    cut = Fragments("sequential", 2).of(Mixture())
    assert [len(part) for part in cut] == [16, 16]
    assert all(name.startswith(f"blocks.{index}.") for index, part in enumerate(cut) for name, _ in part)


@pytest.mark.parametrize(("count", "every"), [(1, 30), (3, 30), (4, 30), (7, 7), (5, 8)])
def test_each_fragment_is_due_once_in_every_h_steps_evenly(count: int, every: int) -> None:
    offsets = Fragments("strided", count).offsets(every) if count > 1 else Fragments().offsets(every)
    due = [[t for t in range(1, 3 * every + 1) if (t - offset) % every == 0] for offset in offsets]
    assert all(len(steps) == 3 for steps in due)
    assert [steps[0] for steps in due] == sorted({steps[0] for steps in due})
    assert due[-1] == [every, 2 * every, 3 * every]
    gaps = torch.tensor(sorted(t for steps in due for t in steps)).diff()
    assert int(gaps.max() - gaps.min()) <= 1


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="a whole model is one fragment"):
        Fragments("whole", 2)
    with pytest.raises(ValueError, match="count must be at least 1"):
        Fragments("strided", 0)
    with pytest.raises(ValueError, match="kind must be whole, sequential or strided, not 'random'"):
        Fragments("random")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="6 fragments are too many: Tower has 4 layers, enough for 5"):
        Fragments("strided", 6).of(Tower())
    with pytest.raises(UsageError, match="2 fragments are too many: Linear has 0 layers"):
        Fragments("strided", 2).of(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="too few parameters for 2 fragments"):
        Fragments("strided", 2).of(nn.ModuleList([nn.Linear(2, 2, bias=False)]))
    with pytest.raises(UsageError, match="no trainable parameter"):
        Fragments().of(nn.Identity())
    with pytest.raises(UsageError, match="4 fragments cannot each have a step of their own among every 3"):
        Fragments("strided", 4).offsets(3)
