"""A head that tells replaced tokens from those that stood there. A model may carry it beside its own head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.contract.cost import linear, trains
from shoestring.errors import UsageError

ATTRIBUTE = "detector"
"""Where a model carries it."""


class TokenDetector(nn.Module):
    """d = v . gelu(W z): a logit [...] for each hidden state z [..., width], above 0 where the token there is held to be replaced.

    seed: of W. v begins at zero: both answers are then as likely.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # what torch draws for them is of no use
            self.inner, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, 1)
        drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
        with torch.no_grad():
            self.inner.weight.copy_(drawn)
            self.output.weight.zero_()
            self.output.bias.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.output(F.gelu(self.inner(hidden)))
        return found[..., 0]

    def flops(self, places: int, backward: bool = False, inputs: bool = True) -> int:
        """Operations at so many places. backward, inputs: as `contract.cost.linear` has them."""
        inner = linear(self.inner, places, backward, inputs)
        return inner + linear(self.output, places, backward, inputs or trains(self.inner))


def detector_of(model: object) -> TokenDetector:
    """The head that a model carries. Raises: UsageError where it has none."""
    found = getattr(model, ATTRIBUTE, None)
    if not isinstance(found, TokenDetector):
        raise UsageError("this model has no head that tells replaced tokens: train one with --edits detector")
    return found
