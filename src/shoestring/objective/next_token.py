"""Next-token prediction: the mean negative log-likelihood of each token given those before it, in nats."""

import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel, Reading
from shoestring.contract.objective import At, Loss
from shoestring.method import method
from shoestring.objective.cross_entropy import CrossEntropy

log = logging.getLogger(__name__)


@method(
    "objective",
    name="next_token",
    claim="the likelihood of the text itself: what held-out loss and bits per byte measure",
    cost="one output-layer matrix product a token, forward and twice backward",
)
class NextToken:
    """The mean negative log-likelihood, in nats, of the targets that count.

    L = -1/W sum_i w_i log p(x_{i+1} | x_1..x_i), with W = sum_i w_i, and w_i = 1 in a batch without weights.

    cross_entropy: how the output layer's loss is computed (`objective/cross_entropy.py`), where the head is one matrix and
    all targets count the same; else the logits are left to autograd, which is said once.
    """

    def __init__(self, cross_entropy: CrossEntropy) -> None:
        self.cross_entropy = cross_entropy
        self._said = False

    def count(self, batch: Batch) -> float:
        """W: the number of targets that count, or the sum of their weights."""
        if batch.weights is None:
            return batch.tokens
        return float(batch.weights[batch.targets != IGNORED].double().sum())

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. batch: of token ids, on the model's device."""
        reading = model.read(batch.inputs)
        self._say(reading.head.weight)
        mean = text_loss(reading, batch, self.cross_entropy)
        shape = Shape(batch.rows, batch.inputs.length, backward=True)
        return Loss(mean, {MODEL: Charge(flops=model.cost(shape).flops)}, auxiliary=reading.auxiliary())

    def logits(self, model: LanguageModel, batch: Batch, at: At) -> Tensor:
        """As `Likelihood.logits`."""
        return model.read(batch.inputs).logits()

    def labels(self, batch: Batch) -> Tensor:
        """As `Likelihood.labels`."""
        return batch.targets

    def _say(self, weight: Tensor | None) -> None:
        if not self._said and weight is None:
            log.warning("this model's head is not one matrix: its loss is computed from all logits, in more memory")
        self._said = True


def text_loss(reading: Reading, batch: Batch, cross_entropy: CrossEntropy) -> Tensor:
    """The mean loss of what was read, in nats: by `cross_entropy` where the head is one matrix and all targets count the same."""
    weight = reading.head.weight
    if weight is not None and batch.weights is None:
        return cross_entropy(reading.hidden, weight, batch.targets)
    logits, targets = reading.logits().flatten(0, -2).float(), batch.targets.flatten()
    if batch.weights is None:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    weights = torch.where(targets != IGNORED, batch.weights.flatten(), 0.0)
    return (losses * weights).sum() / weights.sum().clamp_min(1e-12)
