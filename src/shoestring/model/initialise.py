"""The weights a model starts from.

* A matrix of the blocks: normal, standard deviation 1 / sqrt(fan-in), so that what a unit-scale input gives has unit
  scale at any width.
* `output`, the matrix of a mixer that writes to the residual stream: that, divided by sqrt(2 layers), so that the sum
  of all contributions has unit scale at any depth (Language Models are Unsupervised Multitask Learners, 2019).
* The embedding and the head: normal, 1 / sqrt(width). Tied or not, the first logits have about unit scale, and the
  first loss is about ln(vocabulary) + 1/2.
* Gains of norms: 1.
"""

import math

import torch
from torch import nn

from shoestring.model.block import Block


@torch.no_grad()
def initialise(model: nn.Module, layers: int) -> None:
    """Draw every matrix of `model`, a model of `layers` blocks, anew from torch's global generator, in place."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
    for module in model.modules():
        if isinstance(module, Block):
            for mixer in (module.token_mixer, module.channel_mixer):
                mixer.output.weight /= math.sqrt(2 * layers)
