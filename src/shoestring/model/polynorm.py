"""PolyNorm: a feed-forward layer whose activation is a sum of normed powers."""

import torch
from torch import Tensor, nn

from shoestring.method import Epsilon, method
from shoestring.model.two_matrices import TwoMatrices


@method(
    "model",
    kind="channel mixer",
    name="polynorm",
    paper="Polynomial Composition Activations: Unleashing the Dynamics of Large Language Models, arXiv:2411.03884; "
    "Motif 2 12.7B technical report, arXiv:2511.07464",
    claim="captures interactions of higher order than ReLU or SwiGLU, with better loss on dense and sparse models of 1B and more",
    cost="two matrices of width x hidden, and three norms over the hidden features",
)
class PolyNormFeedForward(TwoMatrices):
    """A feed-forward layer with a polynomial of normed powers between its matrices.

    Zhijian Zhuo et al., 2024, arXiv:2411.03884; in Motif 2, arXiv:2511.07464.

    y = W_out (sum_{i=1..3} a_i N(z^i) + b), z = W_in x, N(u) = u / sqrt(mean(u²) + epsilon) over the hidden features;
    a_i = 1/3 and b = 0 at the start. x: [..., width] -> [..., width].

    epsilon: of the norms.
    """

    def __init__(self, width: int, hidden: int, *, epsilon: Epsilon = 1e-6) -> None:
        super().__init__(width, hidden)
        self.epsilon = epsilon
        self.powers = nn.Parameter(torch.full((3,), 1 / 3))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.input(x)
        powers, total = self.powers.to(z.dtype), self.shift.to(z.dtype)
        for number, power in enumerate((z, z * z, z * z * z)):
            total = total + powers[number] * nn.functional.rms_norm(power, power.shape[-1:], None, self.epsilon)
        return self.output(total)
