"""Next-token prediction: the mean negative log-likelihood of each token given those before it, in nats."""

from typing import Any

from torch import Tensor

from shoestring.method import method
from shoestring.objective.cross_entropy import IGNORED, CrossEntropy


@method(
    "objective",
    name="next_token",
    claim="the likelihood of the text itself: what held-out loss and bits per byte measure",
    cost="one output-layer matrix product a token, forward and twice backward",
)
class NextToken:
    """L = -1/N sum_i log p(x_{i+1} | x_1..x_i) over the N targets of a batch that count.

    cross_entropy: how the output layer's loss is computed (`objective/cross_entropy.py`).
    """

    def __init__(self, cross_entropy: CrossEntropy) -> None:
        self.cross_entropy = cross_entropy

    def __call__(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """(mean loss, number of targets that count). batch: inputs, targets [B, T], and positions and documents."""
        hidden = model.hidden(batch.inputs, batch.positions, batch.documents)
        count = int((batch.targets != IGNORED).sum())
        return self.cross_entropy(hidden, model.head_weight, batch.targets), count
