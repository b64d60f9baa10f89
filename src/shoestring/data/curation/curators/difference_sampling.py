"""Documents that a large model finds likely and a small one does not."""

import numpy as np

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import Documents
from shoestring.data.curation.ranking import beyond
from shoestring.data.curation.scored import scored
from shoestring.method import Fraction, method

REASON = "the teacher finds it little likelier than the reference does"


@method(
    "data",
    kind="curation",
    name="difference_sampling",
    paper="MiniPLM: Knowledge Distillation for Pre-Training Language Models, arXiv:2410.17215",
    claim="students of several sizes do better on nine tasks than with online distillation, at no cost while they train",
    cost="one pass of both models over the text, charged",
)
class DifferenceSampling:
    """Keeps the documents with the highest r(x) = log p_teacher(x) - log p_reference(x).

    The paper compares pieces of equal length; documents differ in length, so r is here a byte of text, which also lets teacher
    and reference have different tokenizers. Column `difference`, nats a byte.

    teacher: where the larger model lies.
    reference: where the smaller model lies.
    keep: the share of the text that is kept.
    """

    def __init__(self, *, teacher: str, reference: str, keep: Fraction = 0.5) -> None:
        self.teacher, self.reference, self.keep = teacher, reference, keep

    def __call__(self, documents: Documents, account: Account) -> Column:
        likely, _ = scored(documents, self.teacher, account)
        plain, _ = scored(documents, self.reference, account)
        difference = (plain - likely) / np.maximum(documents.bytes, 1)
        return Column.dropping(beyond(difference, documents.bytes, self.keep), REASON, {"difference": difference})
