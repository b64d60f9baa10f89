"""GELU: a feed-forward layer with two matrices and a smooth activation."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from shoestring.method import method
from shoestring.model.two_matrices import TwoMatrices


@method(
    "model",
    kind="channel mixer",
    name="gelu",
    paper="Gaussian Error Linear Units (GELUs), arXiv:1606.08415",
    claim="better than ReLU and ELU on the vision, language and speech tasks of the paper",
    cost="two matrices of width x hidden",
)
class GELU(TwoMatrices):
    """A feed-forward layer whose activation weighs each feature by the normal distribution function of its value.

    y = W_out gelu(W_in x), gelu(z) = z Phi(z). x: [..., width] -> [..., width].

    approximate: 'none' for Phi itself, 'tanh' for z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))), as GPT-2 has it.
    bias: whether both layers add a learnt vector.
    """

    def __init__(
        self, width: int, hidden: int, *, approximate: Literal["none", "tanh"] = "none", bias: bool = False
    ) -> None:
        super().__init__(width, hidden, bias)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.input(x), approximate=self.approximate))
