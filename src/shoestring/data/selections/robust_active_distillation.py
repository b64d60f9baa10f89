"""Rows to ask a teacher about, when it may be wrong about some of them."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At
from shoestring.data.selection import Chosen, OpenModel, row_means
from shoestring.method import Decay, method


@method(
    "data",
    kind="selection",
    name="robust_active_distillation",
    paper="Robust Active Distillation, arXiv:2210.01213",
    claim="better students than active learning and active distillation, for as many questions to the teacher",
    cost="a forward pass of the model over `more` batches a step, charged; the teacher is asked about what is chosen alone",
)
class RobustActiveDistillation:
    """Draw rows by how much the model has to learn of them, evened out against a teacher that is wrong where it hurts.

    With g_i = 1 - mean over the targets of row i of (q_(1) - q_(2)), the model's margin, in descending order, and m the number of
    rows that the teacher is wrong about, an adversary choosing which,

        max over p of min over wrong rows of  sum over right rows of p_i g_i    has    p_i = (1 / g_i) / H_k for i <= k, else 0,
        H_k = sum_{i <= k} 1 / g_i,    k = argmax (k - m) / H_k

    so the k rows with most to learn are drawn with chances that make them worth the same. Rows are drawn without replacement. The
    teacher is that of the objective. The paper finds m from labelled data; here it is given.

    more: how many times as many rows are drawn from.
    wrong: m, as a share of these.
    """

    def __init__(
        self, open_model: OpenModel, *, more: Annotated[int, Interval(ge=2, le=64)] = 3, wrong: Decay = 0.1
    ) -> None:
        self.more, self.wrong = more, wrong

    def choose(self, model: LanguageModel, parts: Sequence[Batch], rows: int, at: At) -> Chosen:
        margins, spent = row_means(model, parts, _margin)
        gains = (1 - margins).clamp(min=1e-6)
        chances = robust_chances(gains, self.wrong * len(gains))
        uniform = torch.rand(len(gains), generator=at.generator()).clamp(1e-7, 1 - 1e-7)
        # the Gumbel-max trick; where fewer than are wanted have a chance, the next by what there is to learn
        noisy = chances.clamp_min(1e-30).log() - (-uniform.log()).log()
        order = torch.where(chances > 0, noisy, gains - 1e3)
        return Chosen(order.argsort(descending=True, stable=True)[:rows].sort().values, spent)


def robust_chances(gains: Tensor, wrong: float) -> Tensor:
    """[n]: p, of gains [n] above 0 and m."""
    order = gains.argsort(descending=True, stable=True)
    shares = (1 / gains[order].double()).cumsum(0)
    values = (torch.arange(1, len(gains) + 1) - wrong) / shares
    count = int(values.argmax()) + 1
    found = torch.zeros(len(gains), dtype=torch.float64)
    found[order[:count]] = 1 / gains[order[:count]].double() / shares[count - 1]
    return found.float()


def _margin(logs: Tensor) -> Tensor:
    """[n]: between the two likeliest of log-probabilities [n, V]."""
    first, second = logs.topk(2, dim=-1).values.exp().unbind(-1)
    return first - second
