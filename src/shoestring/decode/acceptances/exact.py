"""A draft stays where the model chooses the same."""

from shoestring.decode.acceptance import Question
from shoestring.method import method


@method(
    "decode",
    kind="acceptance",
    name="exact",
    paper="Fast Inference from Transformers via Speculative Decoding, arXiv:2211.17192",
    claim="2x to 3x faster with identical outputs",
    cost="none beside the pass that checks",
)
class Exact:
    """A drafted token stays if it is the one that the model chooses at this place.

    The paper accepts a drafted token with the probability min(1, p / q), and draws another from the rest where it does not; that
    keeps the distribution of texts. Here the model's choice at a place is a function of its logits and of a number that belongs to
    the request and the place (`decode.draws`). So not the distribution alone but the text itself is that of decoding without
    drafts, at any temperature. A draft that was drawn at random stays less often than by the paper's rule.
    """

    exact = True

    def accepts(self, question: Question) -> bool:
        """As `Acceptance.accepts`."""
        return question.drafted == question.chosen
