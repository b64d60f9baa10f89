"""Fill in what the model is surest of."""

from torch import Tensor

from shoestring.method import method


@method(
    "decode",
    kind="denoising order",
    name="confidence",
    paper="Large Language Diffusion Models, arXiv:2502.09992",
    claim="better texts than places in random order",
    cost="none beside the pass",
)
class ConfidenceOrder:
    """The places whose chosen token is likeliest are filled, the others stay hidden.

    Shen Nie et al., 2025, arXiv:2502.09992, 'low-confidence remasking'. score_i = p(chosen token at i), of the model's own logits.
    Of equals, the first.
    """

    ahead = False

    def scores(self, confidence: Tensor, places: Tensor, seed: int, sample: int) -> Tensor:
        """As `UnmaskingOrder.scores`."""
        return confidence.double()
