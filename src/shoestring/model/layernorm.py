"""LayerNorm: take the mean from a vector, and divide it by its standard deviation."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.method import Positive, method


@method(
    "model",
    kind="norm",
    name="layernorm",
    paper="Layer Normalization, arXiv:1607.06450",
    claim="stabilises and shortens the training of recurrent networks, without a dependence on the batch",
    cost="one pass over the activations, 2 `width` parameters",
)
class LayerNorm(nn.Module):
    """Shift and scale a vector to mean 0 and variance 1, then each feature by a learnt gain and a learnt bias.

    y = g (x - mean(x)) / sqrt(var(x) + epsilon) + b over the last dimension; g is 1 and b is 0 at the start.

    x: [..., width], of any floating type.
    """

    def __init__(self, width: int, *, epsilon: Positive = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        # the kernel wants one type, and under autocast x may be bfloat16: cast the gain and the bias, which are small
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.epsilon)
