"""The sequential residual: the channels are mixed after the tokens."""

from collections.abc import Callable

from torch import Tensor, nn

from shoestring.method import method


@method(
    "model",
    kind="residual",
    name="pre_norm",
    paper="On Layer Normalization in the Transformer Architecture, arXiv:2002.04745",
    claim="with the norm before each part, gradients are well behaved at the start, and no warm-up is needed",
    cost="two additions a block",
)
class PreNorm(nn.Module):
    """Each part reads the normed stream and adds to it, one after the other.

    h = x + tokens(x), y = h + channels(h). x: [B, T, width] -> [B, T, width].
    """

    sequential = True
    """Whether the channel mixer reads what the token mixer wrote, so that a gradient of the one reaches the other."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, tokens: Callable[[Tensor], Tensor], channels: Callable[[Tensor], Tensor]) -> Tensor:
        """tokens, channels: the norm and the mixer, [B, T, width] -> [B, T, width]."""
        x = x + tokens(x)
        return x + channels(x)
