"""Headless: tell the next token's embedding from those of the other tokens of the batch."""

import torch
from torch.nn import functional as F

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import Positive, method
from shoestring.objective.cross_entropy import CrossEntropy


@method(
    "objective",
    name="headless",
    paper="Headless Language Models: Learning without Predicting with Contrastive Weight Tying, arXiv:2309.08351",
    claim="up to 20 times less compute than models that predict over the vocabulary, with better downstream scores: +1.6 on "
    "GLUE, +2.7 on LAMBADA",
    cost="products with the batch's own tokens in place of the whole vocabulary",
)
class Headless:
    """The mean negative log-likelihood of each target among the different targets of the batch.

    Nathan Godey, Éric de la Clergerie and Benoît Sagot, 2023, arXiv:2309.08351.

    L = -mean_i log( exp(h_i . e_{y_i} / temperature) / sum_{u in U} exp(h_i . e_u / temperature) ), with h_i the hidden state,
    e_u the row of the head's matrix of token u (the embedding, where it is tied), and U the different targets of the micro-batch.

    Different from the paper: a token that stands there twice is one negative. A model trained so gives no likelihoods: held-out
    losses, which are over the whole vocabulary, say little until some steps of next_token follow.

    temperature: of the scores.
    """

    def __init__(self, cross_entropy: CrossEntropy, *, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def count(self, batch: Batch) -> float:
        """The number of targets, or the sum of their weights."""
        if batch.weights is None:
            return batch.tokens
        return float(batch.weights[batch.targets != IGNORED].double().sum())

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for a model whose head is not one matrix."""
        reading = model.read(batch.inputs)
        matrix = reading.head.weight
        if matrix is None:
            raise UsageError("objective = headless needs a model whose head is one matrix of weights")
        real = batch.targets != IGNORED
        hidden, targets = reading.hidden[real], batch.targets[real]
        known, places = targets.unique(return_inverse=True)
        scores = F.linear(hidden, matrix[known]).float() / self.temperature
        losses = F.cross_entropy(scores, places, reduction="none")
        if batch.weights is None:
            mean = losses.mean() if len(losses) else losses.sum()
        else:
            weights = batch.weights[real].float()
            mean = (losses * weights).sum() / weights.sum().clamp_min(1e-12)
        products = 2 + matrix.requires_grad
        body = model.cost(Shape(batch.rows, batch.inputs.length, outputs=0, backward=True)).flops
        flops = body + products * 2 * len(targets) * len(known) * hidden.shape[-1]
        parts = {"negatives": torch.tensor(float(len(known)), device=mean.device)}
        return Loss(mean, {MODEL: Charge(flops=flops)}, parts, reading.auxiliary())
