"""The nano embedding: a narrow table of tokens, and one matrix to the model's width."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract import cost
from shoestring.contract.anatomy import Slice
from shoestring.method import method
from shoestring.model.narrow_embedding import NarrowEmbedding


@method(
    "model",
    kind="embedding",
    name="nano",
    paper="EmbBERT-Q: Breaking Memory Barriers in Embedded NLP, arXiv:2502.10001",
    claim="a model of 781 kB, weights and activations in 8 bits, outperforms baselines that are scaled down to 2 MB, BERT and "
    "MAMBA among them",
    cost="rank (vocabulary + width) weights in place of vocabulary width; 2 rank width operations a token",
)
class NanoEmbedding(NarrowEmbedding):
    """Each token has `rank` numbers, which one matrix makes as wide as the model.

    Riccardo Bravin et al., 2025, arXiv:2502.10001.

        x = W^T e,   e: [rank], of the table E [vocabulary, rank];   W: [rank, width]
        logits = E W h, where the model is tied;   h: [width]

    Cost: as the card says; the head of a tied model is cheaper too: 2 rank (width + vocabulary) operations a place.
    Different from the paper, whose model is an encoder without an output over tokens: the way back to the tied head; and no table
    of positions, which the token mixers tell. The abstract has no formula: the first line is from the authors' code.

    rank: numbers of a token.
    """

    def __init__(self, width: int, *, rank: Annotated[int, Interval(ge=1, le=65536)] = 16) -> None:
        super().__init__()
        self.inside = rank
        self.weight = nn.Parameter(torch.empty(rank, width))
        self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Normal, so that tokens and logits begin as large as those of a table that is as wide as the model."""
        self.weight.normal_(std=self.weight.shape[1] ** -0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors @ self.weight

    def narrowed(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)

    def flops(self, places: int, backward: bool = False, inputs: bool = True) -> int:
        """As `NarrowEmbedding.flops`."""
        return cost.matrix_product(self.weight, places, backward, inputs)

    def width_slices(self) -> tuple[Slice, ...]:
        """As `NarrowEmbedding.width_slices`."""
        return (Slice("weight", 1),)
