"""Small models of unlike shapes for adapters: native ones from files of transformers, and one that is wrapped."""

from pathlib import Path

import torch
from torch import nn

from shoestring.base import open_model
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.edit import Decision, Evidence
from shoestring.contract.model import LanguageModule
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit
from tests.base.making import save, stock

KINDS = ("llama", "qwen2", "gpt_neox", "gpt2")
"""Fused matrices without and with biases, rows in another order, and transposed layers of a wrapped model."""


def folder_of(kind: str, where: Path) -> Path:
    """The folder of a small model of transformers."""
    return save(stock(kind), where)


def opened(folder: Path) -> LanguageModule:
    found = open_model(str(folder), torch.float32).model
    assert isinstance(found, LanguageModule)
    return found


def evidence(of: LanguageModule) -> Evidence:
    tokens = torch.randint(of.about.vocabulary, (4, 32), generator=torch.Generator().manual_seed(5))
    return Evidence(seed=3, text=(Batch(Inputs(tokens), tokens),))


def adapted(model: LanguageModule, edit: AdapterEdit, *, moved: bool = True) -> tuple[LanguageModule, Decision]:
    """The model with adapters, whose parameters are moved at random as training would."""
    decision = edit.decide(model, evidence(model))
    model = edit.apply(model, decision)
    if moved:
        move(model)
    return model, decision


def move(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    tokens = torch.arange(24).view(2, 12) * 7 % 512
    found = model(tokens)
    return found if isinstance(found, torch.Tensor) else found.logits


__all__ = ["CHOSEN", "KINDS", "adapted", "evidence", "folder_of", "logits", "move", "opened"]
