"""The weights a model starts from.

* A matrix of the blocks: normal, standard deviation 1 / sqrt(fan-in), so that an input of unit scale gives an output of
  unit scale at any width.
* `output`, the matrix of a mixer that writes to the residual stream: zero. A new model is then its embedding and its
  head, at any depth, and each block grows in from nothing (Fixup Initialization, arXiv:1901.09321, starts the last layer
  of every residual branch so).
* The embedding and the head: normal, 1 / (2 sqrt(width)), about the customary 0.02 at width 512. The first loss is a
  little over ln(vocabulary).
* Gains of norms: 1. Biases: 0.
* What a part draws by itself, in a method `draw`: as it says.
* What a part writes to the stream beside its `output`: zero, which it does in a method `silence`, as the last.
"""

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def initialise(model: nn.Module, embedding: nn.Module, head: nn.Module, outputs: Iterable[nn.Module]) -> None:
    """Draw every matrix of `model` anew from torch's global generator, in place.

    head: may be the embedding. outputs: the layers that write to the residual stream, which become zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            scale = 0.5 if module in (embedding, head) else 1.0
            nn.init.normal_(module.weight, std=scale * module.weight.shape[1] ** -0.5)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif (own := getattr(module, "draw", None)) is not None:
            own()
    for module in model.modules():
        if (silent := getattr(module, "silence", None)) is not None:
            silent()
    for output in outputs:
        nn.init.zeros_(output.weight)  # type: ignore[arg-type]
