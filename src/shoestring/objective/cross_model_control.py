"""Cross-model control: a small model learns what to add to another's logits."""

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
from shoestring.method import Positive, method
from shoestring.objective.cross_entropy import CrossEntropy

TEACHER = account("teacher", "another model that the model learns from")

LOGITS = 1 << 24
"""Numbers of logits that are in memory at once, of each of the two models."""


@method(
    "objective",
    name="cross_model_control",
    paper="Cross-model Control: Improving Multiple Large Language Models in One-time Training, arXiv:2410.17599",
    claim="one tiny model, trained once beside a frozen model, improves several models in instruction tuning and unlearning",
    cost="a forward pass of the template, and one more product of both output layers, a token",
)
class CrossModelControl:
    """Train a small model so that its logits, added to those of a frozen one (the template), make the text likely.

        L = mean -log softmax(z_template + strength z)_y

    z [V]: the logits of the model that is trained; y: the true token. The shift z is then added to the logits of other models, as
    `shoestring generate HOST+control:RUN` does: the paper finds that tuning shifts the logits of different models alike. Both
    models have one tokenizer here; hosts may have others (`base.openers.controlled`).

    teacher: the place of the template; '': the base of the run, as it was before its edits.
    strength: of the shift.
    """

    def __init__(self, cross_entropy: CrossEntropy, *, teacher: str = "", strength: Positive = 1.0) -> None:
        self.teachers, self.strength = (teacher,), strength
        self._model: LanguageModel | None = None

    def learn_from(self, *teachers: LanguageModel) -> None:
        """Set the template, once it is opened."""
        (self._model,) = teachers

    def count(self, batch: Batch) -> float:
        """The number of targets that count, or the sum of their weights."""
        if batch.weights is None:
            return batch.tokens
        return float(batch.weights[batch.targets != IGNORED].double().sum())

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError where there is no template, or it has another vocabulary."""
        template = self._require(model)
        with torch.no_grad():
            theirs = template.read(batch.inputs)
        ours = model.read(batch.inputs)
        counts = batch.targets != IGNORED
        hidden, known, targets = ours.hidden[counts], theirs.hidden[counts], batch.targets[counts]
        weights = (
            torch.ones_like(targets, dtype=torch.float32) if batch.weights is None else batch.weights[counts].float()
        )
        total, rows = hidden.new_zeros((), dtype=torch.float32), max(1, LOGITS // model.about.vocabulary)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            given = (ours.head, theirs.head, hidden[part], known[part], targets[part], weights[part])
            # logits are not kept for the backward pass: they are computed again there, block by block
            total = total + checkpoint(self._block, *given, use_reentrant=False)
        mean = total / weights.sum().clamp_min(1e-12)
        places = len(targets)
        shape = Shape(batch.rows, batch.inputs.length, backward=True)
        spent = {
            MODEL: Charge(flops=model.cost(shape).flops + ours.head.flops(places)),
            TEACHER: Charge(
                flops=theirs.cost.flops + 2 * theirs.head.flops(places), read=batch.targets.numel(), calls=1
            ),
        }
        return Loss(mean, spent)

    def _block(
        self, head: Head, other: Head, hidden: Tensor, known: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """The weighted sum of the losses of some places."""
        with torch.no_grad():
            before = other.logits(known).float()
        losses = F.cross_entropy(before + self.strength * head.logits(hidden).float(), targets, reduction="none")
        return (losses * weights).sum()

    def _require(self, model: LanguageModel) -> LanguageModel:
        if self._model is None:
            raise UsageError("cross_model_control has no template: name one with --objective.teacher PLACE")
        if self._model.about.vocabulary != model.about.vocabulary:
            raise UsageError(
                f"the template has {self._model.about.vocabulary} tokens and the model {model.about.vocabulary}: train the model "
                "with the template's tokenizer (--data.tokenizer FILE)"
            )
        return self._model
