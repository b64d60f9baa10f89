"""Drafts of a smaller model."""

from collections.abc import Sequence

from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.model import LanguageModel
from shoestring.decode.choosing import changed_logits, next_token, put
from shoestring.decode.draft_state import DraftState
from shoestring.decode.row import Draft, Row
from shoestring.decode.work import RowWork
from shoestring.method import Count, Fraction, Whole, method


@method(
    "decode",
    kind="drafter",
    name="draft_model",
    paper="Fast Inference from Transformers via Speculative Decoding, arXiv:2211.17192",
    claim="2x to 3x faster with identical outputs",
    cost="a pass of the draft model for each token of a draft, over all rows; its own cache",
)
class DraftModel:
    """A smaller model writes on for a few tokens.

    At each place it chooses as the model would: with the same bias, penalties and constraint, and by the same number (`Row.draw`),
    so that where its distribution is near the model's, the token is the same at any temperature. Rows of any lengths are read in
    one pass. A draft ends before a token where the draft model is not sure: max_y p(y | text) < confidence, the fallback policy of
    Speculative Decoding with Big Little Decoder, arXiv:2302.07863.

    draft: the smaller model, of the same vocabulary.
    target: the model that writes.
    most: tokens of a draft.
    confidence: the least probability of the draft model's likeliest token; 0: drafts have `most` tokens.
    room: tokens that are kept of all rows, in a cache of its own; 0: the model's context, at least 2^15.
    """

    wants_hidden = False

    def __init__(
        self,
        draft: LanguageModel,
        target: LanguageModel,
        *,
        most: Count = 6,
        confidence: Fraction = 0.4,
        room: Whole = 0,
    ) -> None:
        self.most, self.confidence = most, confidence
        self.state = DraftState(draft, target, room)

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[Draft]:
        """As `Drafter.propose`."""
        context, limits = self.state.model.about.context, dict[int, int]()
        for row, limit in zip(rows, most, strict=True):
            # the last drafted token is not read
            limits[row.number] = max(0, min(limit, self.most, context - self.state.length(row) + 1))
        own = self.state.ready([row for row in rows if limits[row.number]], limits)
        drafts: dict[int, list[int]] = {number: [] for number in own}
        works = [RowWork(row, row.tokens[row.held :]) for row in own.values()]
        while works:
            again = list[RowWork]()
            for work, read in zip(works, self.state.read(works), strict=True):
                token = None if read is None else self._next(work.row, read.logits[-1])
                if token is None:
                    continue
                draft = drafts[work.row.number]
                draft.append(token)
                if len(draft) < limits[work.row.number]:
                    again.append(RowWork(work.row, [token]))
            works = again
        return [Draft(drafts.get(row.number, ())) for row in rows]

    def _next(self, own: Row, logits: Tensor) -> int | None:
        """The next token of a draft, put to the draft model's row; None: the draft ends before it."""
        logits = changed_logits(own, logits)
        if self.confidence and float(logits.softmax(0).max()) < self.confidence:
            return None
        token = next_token(own, logits, self.state.skipped(own))
        if token in own.request.ends:  # nothing would follow
            return None
        put(own, token)
        return token

    def spent(self) -> Charge:
        """As `Drafter.spent`."""
        return self.state.spent()

    def drop(self, row: Row) -> None:
        """As `Drafter.drop`."""
        self.state.drop(row)
