"""Learning from another model's distribution over the next token."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL, account
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import Head, LanguageModel
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import Fraction, Positive, method
from shoestring.objective.cross_entropy import CrossEntropy

TEACHER = account("teacher", "another model that the model learns from")

LOGITS = 1 << 24
"""Numbers of logits that are in memory at once, of each of the two models."""

Divergence = Literal["forward", "reverse"]


@method(
    "objective",
    name="distillation",
    paper="Distilling the Knowledge in a Neural Network, arXiv:1503.02531; "
    "Compact Language Models via Pruning and Knowledge Distillation, arXiv:2407.14679",
    claim="a pruned model that learns from the logits of the one it was made of needs far fewer tokens than on text alone",
    cost="a forward pass of the teacher, and one more product of the output layer, a token",
)
class Distillation:
    """The divergence of the model's next-token distribution q from the teacher's p, mixed with the loss on the text.

        L = weight tau^2 D + (1 - weight) CE,   D = KL(p || q) (forward) or KL(q || p) (reverse), of softmax(logits / tau)

    Means over the targets that count. tau^2 keeps the gradients' size. The reverse divergence here is of each token given the
    text; MiniLLM (arXiv:2306.08543) takes it over texts that the student writes, which this does not.

    teacher: the place of a model; '': the base of the run, as it was before its edits.
    weight: of the divergence, from 0 to 1.
    temperature: tau.
    divergence: 'forward' or 'reverse', as above.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        teacher: str = "",
        weight: Fraction = 1.0,
        temperature: Positive = 1.0,
        divergence: Divergence = "forward",
    ) -> None:
        self.teacher, self.weight, self.temperature, self.divergence = teacher, weight, temperature, divergence
        self._model: LanguageModel | None = None

    def learn_from(self, teacher: LanguageModel) -> None:
        """Set the teacher, once it is opened."""
        self._model = teacher

    def count(self, batch: Batch) -> float:
        """The number of targets that count, or the sum of their weights."""
        if batch.weights is None:
            return batch.tokens
        return float(batch.weights[batch.targets != IGNORED].double().sum())

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError where there is no teacher, or it has another vocabulary."""
        teacher = self._require(model)
        with torch.no_grad():
            theirs = teacher.read(batch.inputs)
        ours = model.read(batch.inputs)
        targets = batch.targets.flatten()
        weights = (targets != IGNORED).float()
        if batch.weights is not None:
            weights = weights * batch.weights.flatten()
        hidden, known = ours.hidden.flatten(0, -2), theirs.hidden.flatten(0, -2)
        sums, places = hidden.new_zeros(2, dtype=torch.float32), len(targets)
        rows = max(1, LOGITS // model.about.vocabulary)
        for start in range(0, places, rows):
            part = slice(start, start + rows)
            given = (ours.head, theirs.head, hidden[part], known[part], targets[part], weights[part])
            # logits are not kept for the backward pass: they are computed again there, block by block
            sums = sums + checkpoint(self._block, *given, use_reentrant=False)
        divergence, entropy = sums / weights.sum().clamp_min(1e-12)
        mean = self.weight * self.temperature**2 * divergence + (1 - self.weight) * entropy
        shape = Shape(batch.rows, batch.inputs.length, backward=True)
        again = ours.head.flops(places)
        spent = {
            MODEL: Charge(flops=model.cost(shape).flops + again),
            TEACHER: Charge(flops=theirs.cost.flops + 2 * theirs.head.flops(places), read=places, calls=1),
        }
        parts = {"divergence": divergence.detach(), "next_token": entropy.detach()}
        return Loss(mean, spent, parts, ours.auxiliary())

    def _block(
        self, head: Head, other: Head, hidden: Tensor, known: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """[2]: the weighted sums of the divergence and of the cross-entropy over some places."""
        logits = head.logits(hidden).float()
        with torch.no_grad():
            p = (other.logits(known).float() / self.temperature).log_softmax(-1)
        q = (logits / self.temperature).log_softmax(-1)
        first, second = (p, q) if self.divergence == "forward" else (q, p)
        divergence = (first.exp() * (first - second)).sum(-1)
        entropy = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return torch.stack([(divergence * weights).sum(), (entropy * weights).sum()])

    def _require(self, model: LanguageModel) -> LanguageModel:
        if self._model is None:
            raise UsageError("distillation has no teacher: name one (--objective.teacher PLACE), or train on a base")
        if self._model.about.vocabulary != model.about.vocabulary:
            raise UsageError(
                f"the teacher has {self._model.about.vocabulary} tokens and the model {model.about.vocabulary}: "
                "a teacher of the same tokenizer is needed"
            )
        return self._model
