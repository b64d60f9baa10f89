"""The modules' own counts against torch's counter."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shoestring.contract.batch import Inputs
from shoestring.contract.cost import Shape
from shoestring.model import Transformer
from tests.flop_counting import CPU_ATTENTION


@pytest.mark.parametrize("length", [1, 7, 48])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_torch_counts(model: Transformer, length: int, packed: bool, backward: bool) -> None:
    inputs = torch.zeros(3, length, dtype=torch.int64)
    documents = (torch.arange(length) // 4).expand(3, -1) if packed else None
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        with nullcontext() if backward else torch.no_grad():
            logits = model(inputs, documents=documents)
        if backward:
            logits.sum().backward()
    assert model.cost(Shape(3, length, backward=backward)).flops == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("past", "new"), [(0, 9), (9, 1), (9, 4)])
def test_flops_of_cached_decoding(model: Transformer, past: int, new: int) -> None:
    cache = model.new_cache(2, 20)
    with torch.no_grad():
        if past:
            model.read(Inputs(torch.zeros(2, past, dtype=torch.int64)), cache)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            model.read(Inputs(torch.zeros(2, new, dtype=torch.int64)), cache).hidden[
                :, -1:
            ] @ model.get_output_embeddings().weight.T
    assert model.cost(Shape(2, new, past, outputs=1)).flops == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("trained", ["token_norm", "channel_norm", "qkv", "channel_mixer", "blocks.1.token_norm"])
def test_flops_where_some_weights_are_frozen(model: Transformer, trained: str) -> None:
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trained in name
    model.changed()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        model(torch.zeros(2, 9, dtype=torch.int64)).sum().backward()
    assert model.cost(Shape(2, 9, backward=True)).flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_parts_add_up(model: Transformer) -> None:
    whole = model.cost(Shape(2, 8, backward=True)).flops
    head = whole - model.cost(Shape(2, 8, outputs=0, backward=True)).flops
    assert head == 3 * 2 * 2 * 8 * 32 * 50
    parts = sum(block.flops(Shape(2, 8, backward=True)) for block in model.blocks)  # type: ignore[operator]
    assert whole == parts + head
