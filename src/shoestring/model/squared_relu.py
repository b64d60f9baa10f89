"""Squared ReLU: a feed-forward layer with two matrices and a sparse activation."""

from torch import Tensor
from torch.nn import functional as F

from shoestring.method import method
from shoestring.model.two_matrices import TwoMatrices


@method(
    "model",
    kind="channel mixer",
    name="squared_relu",
    paper="Primer: Searching for Efficient Transformers for Language Modeling, arXiv:2109.08668",
    claim="the simplest of Primer's two changes, which together reach a Transformer's quality in a third to a quarter "
    "of the compute",
    cost="two matrices of width x hidden",
)
class SquaredReLU(TwoMatrices):
    """A feed-forward layer with the square of ReLU as its activation.

    y = W_out relu(W_in x)². x: [..., width] -> [..., width].
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.input(x)).square())
