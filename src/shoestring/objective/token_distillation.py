"""What objectives share that learn from a teacher's distribution over the next token."""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import Head, LanguageModel, Reading
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.objective import teachers as taught
from shoestring.objective.teachers import TEACHER, TeacherAnswer, Teachers, as_known


class TokenDistillation(abc.ABC):
    """A mean over the targets that count, mixed with the loss on the text:

        L = weight tau^2 D(p, q) + (1 - weight) CE,   p, q: softmax of the teachers' and the model's logits / tau

    A method says what D is, and may let `weight` change with progress. From a cache, p is known of the likeliest k tokens; all
    others are one then, for p and for q, so that D is a little smaller, and the same where k is the vocabulary.

    teachers: places of models; '': the base of the run. weight: from 0 to 1. temperature: tau.
    cache: a folder for what the teachers say; '': they are asked each time. top: k.
    """

    def __init__(
        self, teachers: Sequence[str], *, weight: float, temperature: float, cache: str = "", top: int = 64
    ) -> None:
        self.teachers, self.weight, self.temperature = tuple(teachers), weight, temperature
        self._cache, self._top = cache, top
        self._asked: Teachers | None = None

    @abc.abstractmethod
    def divergence(self, taught: Tensor, own: Tensor) -> Tensor:
        """[N]: how far the model's log-probabilities [N, V] are from the teachers', of the same shape."""

    def weight_at(self, at: At) -> float:
        """The weight of the divergence: where it is 0, the teachers are not asked."""
        return self.weight

    def learn_from(self, *teachers: LanguageModel) -> None:
        """Set the teachers, once they are opened."""
        self._asked = Teachers(teachers, temperature=self.temperature, cache=self._cache, top=self._top)

    def count(self, batch: Batch) -> float:
        """The number of targets that count, or the sum of their weights."""
        return counted(batch)

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError where there is no teacher, or it has another vocabulary."""
        weight, answer = self.weight_at(at), None
        if weight:
            answer = self._require(model).ask(batch)
        ours = model.read(batch.inputs)
        divergence, entropy = self._means(ours, answer, batch, max(1, taught.LOGITS // model.about.vocabulary))
        mean = weight * self.temperature**2 * divergence + (1 - weight) * entropy
        shape = Shape(batch.rows, batch.inputs.length, backward=True)
        again = ours.head.flops(batch.targets.numel())
        spent = {MODEL: Charge(flops=model.cost(shape).flops + again)}
        if answer is not None:
            spent[TEACHER] = answer.spent
        parts = {"divergence": divergence.detach(), "next_token": entropy.detach()}
        return Loss(mean, spent, parts, ours.auxiliary())

    def _means(self, ours: Reading, answer: TeacherAnswer | None, batch: Batch, rows: int) -> Tensor:
        """[2]: the means of the divergence and of the cross-entropy over the places that count, `rows` places at a time."""
        targets, weights = batch.targets.flatten(), weights_of(batch)
        hidden = ours.hidden.flatten(0, -2)
        sums = hidden.new_zeros(2, dtype=torch.float32)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            given = (ours.head, answer, part, hidden[part], targets[part], weights[part])
            # logits are not kept for the backward pass: they are computed again there, block by block
            sums = sums + checkpoint(self._block, *given, use_reentrant=False)
        return sums / weights.sum().clamp_min(1e-12)

    def _block(
        self, head: Head, answer: TeacherAnswer | None, part: slice, hidden: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """[2]: the weighted sums of the divergence and of the cross-entropy over some places."""
        logits = head.logits(hidden).float()
        entropy = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        divergence = torch.zeros_like(entropy)
        if answer is not None:
            tokens, p = answer.block(part)
            divergence = self.divergence(p, as_known((logits / self.temperature).log_softmax(-1), tokens))
        return torch.stack([(divergence * weights).sum(), (entropy * weights).sum()])

    def _require(self, model: LanguageModel) -> Teachers:
        if self._asked is None:
            raise UsageError("distillation has no teacher: name one (--objective.teacher PLACE), or train on a base")
        if self._asked.vocabulary != model.about.vocabulary:
            raise UsageError(
                f"the teacher has {self._asked.vocabulary} tokens and the model {model.about.vocabulary}: "
                "a teacher of the same tokenizer is needed"
            )
        return self._asked


def counted(batch: Batch) -> float:
    """The number of targets that count, or the sum of their weights."""
    if batch.weights is None:
        return batch.tokens
    return float(batch.weights[batch.targets != IGNORED].double().sum())


def weights_of(batch: Batch) -> Tensor:
    """float32 [B T]: what each place counts, 0 where nothing is to be predicted."""
    weights = (batch.targets != IGNORED).float().flatten()
    return weights if batch.weights is None else weights * batch.weights.flatten()


def kullback_leibler(p: Tensor, q: Tensor) -> Tensor:
    """[N]: KL(p || q) of log-probabilities [N, V]."""
    share = p.exp()
    return torch.where(share > 0, share * (p - q), 0.0).sum(-1)
