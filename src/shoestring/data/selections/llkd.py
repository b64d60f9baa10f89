"""Rows that a teacher is sure of and the model is not."""

import math
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At
from shoestring.data.selection import Chosen, OpenModel, row_means
from shoestring.method import method


@method(
    "data",
    kind="selection",
    name="llkd",
    paper="Learning with Less: Knowledge Distillation from Large Language Models via Unlabeled Data, arXiv:2411.08028",
    claim="better students from fewer pseudo-labelled samples on several classification sets",
    cost="a forward pass of the model and one of the teacher over `more` batches a step, charged",
)
class LLKD:
    """Take rows of which the teacher is confident, and the model uncertain, both more than usual.

        c_i = mean over the targets of row i of max_j p_j,     u_i = mean of H(q) / log V

    with p the teacher's distribution and q the model's. Rows with c_i and u_i at or above their means over the larger batch come
    first, then the others, each by c_i u_i. The paper's samples are labelled by the teacher, and it takes all above two thresholds
    that it adapts; here a row is a stretch of text, and as many are taken as a step has.

    teacher: where it lies; it reads the same tokens.
    more: how many times as many rows are drawn as are trained on.
    """

    def __init__(self, open_model: OpenModel, *, teacher: str, more: Annotated[int, Interval(ge=2, le=64)] = 2) -> None:
        self.more, self.teacher = more, open_model(teacher)

    def choose(self, model: LanguageModel, parts: Sequence[Batch], rows: int, at: At) -> Chosen:
        confidence, asked = row_means(self.teacher, parts, lambda logs: logs.amax(-1).exp())
        uncertainty, spent = row_means(model, parts, _entropy)
        uncertainty = uncertainty / math.log(model.about.vocabulary)
        both = (confidence >= confidence.mean()) & (uncertainty >= uncertainty.mean())
        score = confidence * uncertainty + both.float() * 2  # a product is below 1
        return Chosen(score.argsort(descending=True, stable=True)[:rows].sort().values, spent + asked)


def _entropy(logs: Tensor) -> Tensor:
    """[n], nats, of log-probabilities [n, V]."""
    return -(logs.exp() * logs).sum(-1)
