"""Frozen layers below adapters, kept in the type of their products."""

from typing import Any

import pytest
import torch
from torch import nn

from shoestring.contract.adapter import Adapter
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.model import ModelConfig, Transformer
from shoestring.train.frozen_weights import NarrowLinear, narrow_frozen
from shoestring.tune.adapter_edit import AdapterEdit
from shoestring.tune.edits.dora import DoRA
from shoestring.tune.edits.lora import LoRA
from shoestring.tune.edits.road import RoAd

MODEL = ModelConfig(layers=2, width=16, heads=2, vocabulary=40, context=8)


def adapted(edit: AdapterEdit) -> tuple[LanguageModule, Decision]:
    torch.manual_seed(1)
    base = Transformer(MODEL)
    decision = edit.decide(base, Evidence(seed=2))
    return edit.apply(base, decision), decision


def loss(model: LanguageModule, lower: bool = True) -> torch.Tensor:
    tokens = torch.arange(16).view(2, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        return model(tokens).float().logsumexp(-1).sum()


@pytest.mark.parametrize("edit", [LoRA(rank=2), RoAd(group=2)], ids=["lora", "road"])
def test_products_and_gradients_are_those_of_autocast(edit: AdapterEdit) -> None:
    (plain, _), (narrow, _) = adapted(edit), adapted(edit)
    layers = sum(type(module) is nn.Linear for module in narrow.modules())
    before = sum(parameter.nbytes for parameter in narrow.parameters())
    assert narrow_frozen(narrow, torch.bfloat16) == layers
    assert sum(parameter.nbytes for parameter in narrow.parameters()) < before
    assert loss(plain) == loss(narrow)
    loss(plain).backward()
    loss(narrow).backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), narrow.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
    # where nothing is cast, as in a sample that is drawn, the products are in that type all the same
    torch.testing.assert_close(loss(narrow, False), loss(plain, False), rtol=1e-2, atol=0.1)


def test_an_adapter_that_reads_the_weight_has_it_whole() -> None:
    model, _ = adapted(DoRA(rank=2))
    assert narrow_frozen(model, torch.bfloat16) == 0


def test_a_layer_that_is_trained_or_shared_stays() -> None:
    model, _ = adapted(LoRA(rank=2, targets=("*.output",)))
    layers: list[Any] = [module.base for module in model.modules() if isinstance(module, Adapter)]
    layers[0].weight.requires_grad_(True)
    layers[2].weight = layers[3].weight = nn.Parameter(layers[2].weight.detach(), requires_grad=False)
    assert narrow_frozen(model, torch.bfloat16) == len(layers) - 3
    assert not any(isinstance(layers[number], NarrowLinear) for number in (0, 2, 3))
