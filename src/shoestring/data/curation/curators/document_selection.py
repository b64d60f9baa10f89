"""A model grades a sample of documents; a cheap scorer learns its grades and judges the rest."""

import hashlib

import numpy as np

from shoestring.data.curation.account import Account
from shoestring.data.curation.column import Column
from shoestring.data.curation.documents import Documents
from shoestring.data.curation.linear_scorer import LinearScorer
from shoestring.data.curation.ranking import beyond
from shoestring.method import Count, Fraction, Positive, Whole, method

REASON = "low grade"

QUESTION = "Is the text above well written and of use to somebody who wants to learn? Answer yes or no. Answer:"

HELD = 5
"""Every how many-th graded document is kept from the scorer, to see how well it agrees with the grades."""


@method(
    "data",
    kind="curation",
    name="document_selection",
    paper="Large Language Model-guided Document Selection, arXiv:2406.04638",
    claim="with 75 % of the corpus dropped, quality across benchmarks matches the whole with at most 70 % of the FLOPs",
    cost="two passes of the grader over the sample, charged; one reading of the text by a linear scorer",
)
class DocumentSelection:
    """A prompted model grades a sample; the grades are distilled into a linear scorer, which keeps the best documents.

    The grade is the log-odds of ' yes' over ' no' after the document and a question: log p(yes) - log p(no), which needs no text
    to be written. The paper has the grader answer, and distils into a small language model; here the scorer is a ridge
    regression on hashed words and pairs of words. Column `grade`, as the scorer sees it.

    grader: where the model that grades lies.
    sample: documents that it grades.
    keep: the share of the text that is kept.
    question: asked after each document.
    characters: of a document that the grader is shown, from its beginning.
    penalty: of the regression, on the squared weights.
    seed: of the sample.
    """

    def __init__(
        self,
        *,
        grader: str,
        sample: Count = 2000,
        keep: Fraction = 0.25,
        question: str = QUESTION,
        characters: Count = 2000,
        penalty: Positive = 1.0,
        seed: Whole = 0,
    ) -> None:
        self.grader, self.sample, self.keep, self.question = grader, sample, keep, question
        self.characters, self.penalty, self.seed = characters, penalty, seed

    def __call__(self, documents: Documents, account: Account) -> Column:
        chosen = documents.sample(self.sample, self.seed)
        mask = np.zeros(len(documents), dtype=bool)
        mask[chosen] = True
        graded = documents.only(mask)
        if not len(graded):
            return Column.dropping(mask, REASON, {"grade": np.empty(0)})
        grades = self._grades(graded, account)
        texts = list(graded)
        held = np.arange(len(texts)) % HELD == HELD - 1
        learnt = [text for text, out in zip(texts, held, strict=True) if not out]
        scorer = LinearScorer.of_grades(learnt, grades[~held], self.penalty)
        notes = _agreement(scorer, [text for text, out in zip(texts, held, strict=True) if out], grades[held])
        found = documents.mapped(
            "document_selection", {"scorer": scorer.digest}, lambda some: {"grade": scorer(some)}, account
        )
        grade = np.asarray(found["grade"])
        return Column.dropping(beyond(grade, documents.bytes, self.keep), REASON, {"grade": grade}, notes)

    def _grades(self, documents: Documents, account: Account) -> np.ndarray:
        """float64 [n]: log p(yes) - log p(no)."""
        scorer = account.scorer(self.grader)

        def grade(texts: list[str]) -> dict[str, np.ndarray]:
            asked = [f"{text[: self.characters]}\n\n{self.question}" for text in texts]
            yes, no = (scorer.score([text + answer for text in asked]).nats for answer in (" yes", " no"))
            return {"grade": np.asarray(no - yes, np.float64)}

        question = hashlib.sha256(self.question.encode()).hexdigest()
        options = {"grader": scorer.digest, "question": question, "characters": self.characters}
        return np.asarray(documents.mapped("grades", options, grade, account)["grade"])


def _agreement(scorer: LinearScorer, texts: list[str], grades: np.ndarray) -> list[str]:
    """How well the scorer ranks graded documents that it did not learn from."""
    if len(texts) < 3 or np.ptp(grades) == 0:
        return []
    import scipy.stats  # slow to load

    found = scipy.stats.spearmanr(scorer(texts), grades).statistic
    return [f"the scorer ranks {len(texts)} graded documents it did not learn from with a correlation of {found:.2f}"]
