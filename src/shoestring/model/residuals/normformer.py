"""NormFormer's residual: what the token mixer says is normed before it is added."""

from collections.abc import Callable

from torch import Tensor, nn

from shoestring.contract.anatomy import Axis, Slice
from shoestring.method import Positive, method
from shoestring.model.layernorm import LayerNorm


@method(
    "model",
    kind="residual",
    name="normformer",
    paper="NormFormer: Improved Transformer Pretraining with Extra Normalization, arXiv:2110.09456",
    claim="with its norm within the feed-forward layer and scaled heads, the loss of a model 22 % to 43 % sooner than pre-norm",
    cost="one norm a block",
)
class NormFormerResidual(nn.Module):
    """The sequential residual with a LayerNorm after the token mixer.

    Sam Shleifer, Jason Weston and Myle Ott, 2021, arXiv:2110.09456.

    h = x + LayerNorm(tokens(x)), y = h + channels(h). x: [B, T, width] -> [B, T, width].

    Different from the paper: the norm within the feed-forward layer is the channel mixer of this name; heads are not scaled. The
    token mixer's output starts at zero, which this norm makes its shift.

    epsilon: of the norm.
    """

    sequential = True

    def __init__(self, width: int, *, epsilon: Positive = 1e-5) -> None:
        super().__init__()
        self.norm = LayerNorm(width, epsilon=epsilon)

    def forward(self, x: Tensor, tokens: Callable[[Tensor], Tensor], channels: Callable[[Tensor], Tensor]) -> Tensor:
        """As `PreNorm.forward`."""
        x = x + self.norm(tokens(x))
        return x + channels(x)

    def axes(self) -> tuple[Axis, ...]:
        """The axis of the width."""
        return (Axis("width", None, len(self.norm.weight), (Slice("norm.weight", 0),)),)
