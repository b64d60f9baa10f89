"""dKV-Cache-Decode: keep the keys and values of a token from the step after it was filled in."""

import torch
from torch import Tensor

from shoestring.decode.denoising import DenoisingStep
from shoestring.method import Count, method


@method(
    "decode",
    kind="denoising cache",
    name="dkv_decode",
    paper="dKV-Cache: The Cache for Diffusion Language Models, arXiv:2505.15781",
    claim="almost lossless, 1.8 to 2.4 times as fast on LLaDA-8B-Instruct, with a refresh every 8 steps",
    cost="a pass computes what was hidden one step before, and all of it every `refresh` steps; keys and values of the whole text "
    "are held",
)
class DelayedDecode:
    """A step computes the places that were hidden as the step before began: M_{t-1}.

    Xinyin Ma et al., 2025, arXiv:2505.15781, eq. 4:

        z_t = softmax(Q^{M_{t-1}} K^T / sqrt(d)) V,   K = (K_{t-1} outside M_{t-1}, K_t within)

    A token's keys and values change most as it is filled in. So they are computed once more, with the token in its place, and kept
    from then on. Every `refresh` steps all are computed anew. The variants Prefill and PD, which keep the prompt's for good, are
    not here.

    refresh: steps from one pass over the whole text to the next; 1: nothing is kept.
    """

    ahead = False

    def __init__(self, *, refresh: Count = 8) -> None:
        self.refresh = refresh

    def due(self, step: DenoisingStep) -> Tensor:
        """As `DenoisingCache.due`."""
        return step.before if step.number % self.refresh else torch.ones_like(step.hidden)
