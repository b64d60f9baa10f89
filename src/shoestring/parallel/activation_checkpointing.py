"""Activation checkpointing by layer: the backward pass computes a layer, or the cheap parts of it, again."""

from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shoestring.contract.anatomy import Anatomy
from shoestring.contract.cost import Shape

Kept = Literal["inputs", "products"]
"""What a layer keeps of its activations."""


_aten = torch.ops.aten
PRODUCTS: frozenset[Any] = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)
"""Operations that cost: products of matrices, and attention by the fused kernels."""


def checkpoint_layers(anatomy: Anatomy, kept: Kept = "inputs") -> None:
    """Have each layer of a model keep fewer activations. The tree of modules stays as it is.

    kept: 'inputs': of a layer's activations only its inputs [B, T, width], Chen et al. (2016), arXiv:1604.06174; the backward
    pass computes the forward pass of the layer once more, a third more operations at most. 'products': what products of matrices
    and attention give as well; the rest (norms, activations, rotations) is computed again, which is no operation as
    `contract.cost` counts them. That some are kept is of Korthikanti et al. (2022), arXiv:2205.05198; their choice is another.
    """
    more: dict[str, Any] = (
        {} if kept == "inputs" else {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
    )
    for name in anatomy.layers:
        layer: Any = anatomy.model.get_submodule(name)
        # on the instance: hooks of `fully_shard` are around it, and put the weights there before it is computed again
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, **more)


def _keep_products(context: Any, operation: Any, *given: Any, **more: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def recomputed_flops(model: Any, rows: int, length: int) -> int:
    """Operations of the layers' forward passes that checkpointing computes again, at the most, where layers keep inputs alone.

    torch stops once it has what the backward pass asks for, which leaves out a last product whose result nothing keeps.

    rows, length: of the inputs.
    """
    shape = Shape(rows, length)
    whole: int = model.cost(shape).flops
    head: int = 2 * shape.head_places * model.about.width * model.about.vocabulary
    return max(whole - head, 0)


def layers_of(anatomy: Anatomy) -> list[nn.Module]:
    """The layers' modules, in order."""
    return [anatomy.model.get_submodule(name) for name in anatomy.layers]
