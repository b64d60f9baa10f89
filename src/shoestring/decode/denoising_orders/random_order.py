"""Fill in places at random."""

import torch
from torch import Tensor

from shoestring.decode.draws import draw
from shoestring.method import method

ORDER = 11
"""The purpose of a draw that orders places."""


@method(
    "decode",
    kind="denoising order",
    name="random_order",
    paper="Simple and Effective Masked Diffusion Language Models, arXiv:2406.07524",
    claim="what the bound that is trained assumes",
    cost="none",
)
class RandomOrder:
    """The order is drawn before anything is read, as the process that hides tokens has no other.

    Subham Sekhar Sahoo et al., 2024, arXiv:2406.07524. Each step fills a set number of places; the paper's number is random too,
    with the same mean.
    """

    ahead = True

    def scores(self, confidence: Tensor, places: Tensor, seed: int, sample: int) -> Tensor:
        """As `UnmaskingOrder.scores`."""
        return torch.tensor([draw(seed, sample, place, ORDER) for place in places.tolist()], dtype=torch.float64)
