"""Activation checkpointing by layer: the backward pass computes a layer again from its input."""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from shoestring.contract.anatomy import Anatomy
from shoestring.contract.cost import Shape


def checkpoint_layers(anatomy: Anatomy) -> None:
    """Have each layer of a model keep its inputs alone.

    Chen et al. (2016), arXiv:1604.06174. Of a layer's activations only its inputs [B, T, width] are kept; the backward pass
    computes the forward pass of the layer once more, a third more operations at most. The tree of modules stays as it is.
    """
    for name in anatomy.layers:
        layer: Any = anatomy.model.get_submodule(name)
        # on the instance: hooks of `fully_shard` are around it, and put the weights there before it is computed again
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def recomputed_flops(model: Any, rows: int, length: int) -> int:
    """Operations of the layers' forward passes that checkpointing computes again.

    rows, length: of the inputs.
    """
    shape = Shape(rows, length)
    whole: int = model.cost(shape).flops
    head: int = 2 * shape.head_places * model.about.width * model.about.vocabulary
    return max(whole - head, 0)


def layers_of(anatomy: Anatomy) -> list[nn.Module]:
    """The layers' modules, in order."""
    return [anatomy.model.get_submodule(name) for name in anatomy.layers]
