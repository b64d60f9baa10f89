"""Ternary weights: -1, 0 and 1, times a scale."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.lowbit.format import Format
from shoestring.method import Epsilon, method

SIGNIFICANT = 2.0**11
"""The significant bits of a float16, its leading one with them."""


@method(
    "lowbit",
    kind="format",
    name="ternary",
    paper="Spectra 1.1: Scaling Laws and Efficient Inference for Ternary Language Models, arXiv:2506.23025; "
    "Spectra: Surprising Effectiveness of Pretraining Ternary Language Models at Scale, arXiv:2407.12327; "
    "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits, arXiv:2402.17764",
    claim="above a billion parameters ahead of float models of as many bits; at 3.9 B on par with float 3.9 B in "
    "commonsense reasoning and knowledge, behind in perplexity",
    cost="while training, a few passes over the weights for every forward pass; then 0.2 or 0.25 bytes a weight",
)
@dataclass(frozen=True, kw_only=True)
class Ternary(Format):
    """Weights -1, 0 and 1 times the mean of the absolute latent weights (TriLM).

    Kaushal et al. (2024), arXiv:2407.12327; Vaidhya et al. (2025), arXiv:2506.23025. For a block W of n latent weights:

        gamma = epsilon + (1/n) sum |W_ij|,    W~ = gamma round(min(max(W / gamma, -1), 1)),
        Y = X W~^T,    dL/dX = dL/dY W~,    dL/dW = (dL/dY)^T X

    The gradient passes straight through, also where a weight is clipped, and none flows through gamma: that is TriLM's, and
    that of BitNet b1.58 (Ma et al. (2024), arXiv:2402.17764). epsilon: TriLM adds 1e-5, which is the default; BitNet b1.58
    raises gamma to at least 1e-5 instead, in its published code. Rounding is to the nearest, halves to the even code.

    scale: 'tensor', as both papers. shards: TriLM's matrices, split by rows over up to 6 devices, have a scale for each
    part: `shards` counts them. 'row' and 'group' (of `group` columns) are finer, and ours.

    gamma is rounded to the 11 significant bits of a float16, so that files whose scales are float16 (GGUF) hold it exactly
    from 2^-14 on; below that a float16 is subnormal and has fewer.

    TriLM quantises no activations, keeps embedding and output head in half precision, and has the norms of the Llama family
    only. BitNet b1.58 quantises activations to 8 bits a token (`activations = "int8"`) and normalises the input of every
    linear layer; no such norm is added here. Differs: latent weights are float32 here, float16 there.

    group: columns of a group, for scale 'group'.
    """

    epsilon: Epsilon = 1e-5

    @property
    def bits(self) -> float:
        return math.log2(3)

    @property
    def largest(self) -> int:
        return 1

    def block_scales(self, blocks: Tensor) -> Tensor:
        share, exponent = torch.frexp(blocks.abs().mean(1, keepdim=True, dtype=torch.float64) + self.epsilon)
        return torch.ldexp((share * SIGNIFICANT).round() / SIGNIFICANT, exponent).float()
