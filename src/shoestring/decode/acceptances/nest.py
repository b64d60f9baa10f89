"""Drafts stay that are not much less likely than the likeliest token."""

from shoestring.decode.acceptance import Question
from shoestring.method import Fraction, method


@method(
    "decode",
    kind="acceptance",
    name="nest",
    paper="Nearest Neighbor Speculative Decoding for LLM Generation and Attribution, arXiv:2405.19325",
    claim="1.8x faster with Llama-2-Chat 70B, with better generations and their sources; of the whole method",
    cost="none; the text is no longer the model's own",
)
class NestAcceptance:
    """A drafted token stays where p(y) >= relaxed max p.

    The relaxed speculative decoding of the paper, without its chance: there a token stays with the probability
    min(1, p(y) / (relaxed max p)).

    Lossy: `AnswerSpent.changed` counts the tokens that stayed though the model chose another.

    relaxed: share of the likeliest token's probability. 1 keeps what is greedy; the smaller, the longer the spans that stay.
    """

    exact = False

    def __init__(self, *, relaxed: Fraction = 0.3) -> None:
        self.relaxed = relaxed

    def accepts(self, question: Question) -> bool:
        """As `Acceptance.accepts`."""
        if question.drafted == question.chosen:
            return True
        behind = float((question.logits[question.drafted] - question.logits.max()).exp())
        return behind >= self.relaxed > 0
