"""Learning answers, and why they are right, from the rationales of several teachers."""

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import NonNegative, method
from shoestring.objective.cross_entropy import CrossEntropy


@method(
    "objective",
    name="tinyllm",
    paper="TinyLLM: Learning a Small Student from Multiple Large Language Models, arXiv:2402.04616",
    claim="a small student of several teachers is better than they are on six data sets of two reasoning tasks",
    cost="a pass over each rationale beside that over the answer; the teachers are asked before",
)
class TinyLLM:
    """The loss of the answers, and those of the rationales of each teacher, weighed.

    Yijun Tian et al., 2024, arXiv:2402.04616.

        L = sum_i w_i nll_i / sum_i w_i,   w_i = 1 for a token of an answer, alpha_m for one of a rationale of teacher m

    Data: `data.kind = answers`, of lines with 'prompt', 'answer' and 'rationales', texts by the names of teachers. Student and
    teachers may have different tokenizers, as teachers are known by what they wrote.

    Different from the paper: it adds up the means of each part; here a token counts the same in a batch whatever else is in it, so
    that long rationales weigh more than short ones. An encoder-decoder is told which to write by a prefix; a decoder is by what
    stands after the question. Where rationales come from is left to the user: the paper tells a teacher the right answer and shows
    it examples, which `data.rationales` does.

    alpha: the weight of each teacher, in order of their names; one: of all.
    """

    def __init__(self, cross_entropy: CrossEntropy, *, alpha: tuple[NonNegative, ...] = (0.5,)) -> None:
        if not alpha:
            raise ValueError("tinyllm: alpha is the weight of each teacher, or one of all")
        self.alpha = alpha

    def count(self, batch: Batch) -> float:
        """The sum of the weights of the targets that count."""
        return float(self._weights(batch).double().sum())

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for text without marks, or with more teachers than weights."""
        weights = self._weights(batch)
        reading = model.read(batch.inputs)
        there = weights.flatten() > 0
        logits = reading.head.logits(reading.hidden.flatten(0, -2)[there]).float()
        losses = torch.nn.functional.cross_entropy(logits, batch.targets.flatten()[there], reduction="none")
        own = weights.flatten()[there]
        mean = (losses * own).sum() / own.sum().clamp_min(1e-12)
        marks = batch.extra["mark"].flatten()[there]
        parts = {"answers": marks == 1, "rationales": marks > 1}
        means = {name: losses.detach()[part].mean() for name, part in parts.items() if part.any()}
        shape = Shape(batch.rows, batch.inputs.length, outputs=0, backward=True)
        body = model.cost(shape).flops
        head = 3 * reading.head.flops(int(there.sum()))
        return Loss(mean, {MODEL: Charge(flops=body + head)}, means, reading.auxiliary())

    def _weights(self, batch: Batch) -> Tensor:
        """[B, T]: 0 where nothing counts."""
        marks = batch.extra.get("mark")
        if marks is None:
            raise UsageError(
                "tinyllm learns from rationales: give data.kind = answers, and a corpus whose lines have 'rationales' beside "
                "'prompt' and 'answer'"
            )
        most = int(marks.max()) - 1
        if 1 < len(self.alpha) < most:
            raise UsageError(
                f"tinyllm: the text has rationales of {most} teachers, and alpha has {len(self.alpha)} weights"
            )
        alpha = self.alpha if len(self.alpha) > 1 else self.alpha * max(most, 1)
        table = torch.tensor([0.0, 1.0, *alpha], device=marks.device)
        found = torch.where(batch.targets == IGNORED, 0.0, table[marks])
        return found if batch.weights is None else found * batch.weights
