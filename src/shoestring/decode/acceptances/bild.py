"""Drafts stay unless the model finds them very unlikely."""

from shoestring.decode.acceptance import Question
from shoestring.method import NonNegative, method


@method(
    "decode",
    kind="acceptance",
    name="bild",
    paper="Speculative Decoding with Big Little Decoder, arXiv:2302.07863",
    claim="up to 2.12x faster on an NVIDIA T4 with minimal loss of quality, on translation and summaries",
    cost="a softmax a drafted token; the text is no longer the model's own",
)
class Bild:
    """The rollback policy: a drafted token stays while its cross-entropy under the model is at most `rollback`.

    d(p_S, p_L) = -log p_L(y | text), y being the small model's token. At the first place with d > rollback, the draft is rolled
    back, and the model's own choice stands there. The fallback policy, which hands over to the large model where the small one
    is not sure, is the drafter's (`confidence` of `draft_model`).

    Lossy: `AnswerSpent.changed` counts the tokens that stayed though the model chose another.

    rollback: nats. 0 keeps almost nothing but what the model is certain of; the paper tunes it for each task, from 1 to 10.
    """

    exact = False

    def __init__(self, *, rollback: NonNegative = 3.0) -> None:
        self.rollback = rollback

    def accepts(self, question: Question) -> bool:
        """As `Acceptance.accepts`."""
        if question.drafted == question.chosen:
            return True
        log_p = question.logits[question.drafted].double() - question.logits.double().logsumexp(0)
        return -float(log_p) <= self.rollback
