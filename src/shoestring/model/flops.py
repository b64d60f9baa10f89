"""The counting convention: what a floating-point operation is, for every `flops` method of a model's parts.

A matrix product of [m, n] and [n, k] is 2mnk operations; its backward pass is two such products, as every weight and
every input takes a gradient. Attention is counted over the full square of queries and keys, though a causal kernel
skips part of it. The fused kernels keep no attention probabilities, so their backward pass is five products, one of
them the scores again, against two forward. Embedding look-ups, norms, activations and masks are free.

This is the convention of `torch.utils.flop_counter`, with which the tests compare. On CPU that counter does not know
the attention kernel: in torch 2.13 `aten._scaled_dot_product_flash_attention_for_cpu` and its backward count as
nothing. So the tests give it, for that kernel, the formulas it has for the GPU's flash kernel.
"""

from torch import nn


def linear(layer: nn.Linear, tokens: int, backward: bool) -> int:
    """Operations of a linear layer on `tokens` vectors, with its backward pass if asked."""
    return (3 if backward else 1) * 2 * tokens * layer.in_features * layer.out_features


def attention(batch: int, heads: int, queries: int, keys: int, head_width: int, backward: bool) -> int:
    """Operations of scaled dot-product attention; `heads` are the query heads, however few key heads they share."""
    return (7 if backward else 2) * 2 * batch * heads * queries * keys * head_width
