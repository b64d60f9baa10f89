"""The stages of checkfree.py: a Transformer cut into an embedding, equal runs of blocks, and norm, head and loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.model.transformer import Transformer


class First(nn.Module):
    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.embedding, self.scale = model.embedding, model.config.input_scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.embedding(inputs) * self.scale


class Blocks(nn.Module):
    """A run of blocks; each stage has its own rotary tables, which hold no weights."""

    def __init__(self, model: Transformer, start: int, count: int) -> None:
        super().__init__()
        self.blocks, self.rotary = model.blocks[start : start + count], model.rotary

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.rotary(0, x.shape[1], None)
        for block in self.blocks:
            x = block(x, cos, sin)
        return x


class Last(nn.Module):
    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.norm, self.head, self.scale = model.norm, model.head, model.config.output_scale

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.head(self.norm(x) * self.scale)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def cut(model: Transformer, stages: int) -> tuple[First, list[Blocks], Last]:
    """The parts of an untied model, sharing its weights; its layers are a multiple of `stages`."""
    each = model.config.layers // stages
    return First(model), [Blocks(model, stage * each, each) for stage in range(stages)], Last(model)


def adamw(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    groups = [
        {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.95))
