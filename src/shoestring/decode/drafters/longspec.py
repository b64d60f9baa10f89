"""Drafts of a smaller model that sees a window of the text, so that its cache has one size for texts of any length."""

from shoestring.contract.model import LanguageModel
from shoestring.decode.draft_state import DraftState
from shoestring.decode.drafters.draft_model import DraftModel
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, Whole, method

ROWS = 32
"""For which there is room, where nothing is said."""


@method(
    "decode",
    kind="drafter",
    name="longspec",
    paper="LongSpec: Long-Context Lossless Speculative Decoding with Efficient Drafting and Verification, arXiv:2502.17421",
    claim="up to 3.26x faster than plain decoding with flash attention over five long-context data sets, without loss",
    cost="as draft_model, and its reading of a window again each `window` tokens; a cache of 2 `window` tokens a row",
)
class LongSpec(DraftModel):
    """A draft model that sees the beginning and the end of a text.

    A draft model sees the first `anchors` tokens of a text and the last `window` to 2 `window`, at positions 0, 1, 2 ... So its
    cache is of constant size, and no position is beyond those that it was trained for, however long the text is. When the
    window is full, its first half is left behind and the other read anew.

    The model itself checks drafts with all of the text: nothing is lost. The paper's draft model is made for its target, with one
    layer that also attends to the target's own cache, and is trained with positions that jump; here it is any model of the same
    vocabulary. Its attention to a tree beside a long text is the engine's.

    draft: the smaller model. target: the model that writes.
    most, confidence: as for draft_model.
    window: tokens. anchors: tokens.
    room: tokens that are kept of all rows; 0: for 32 rows.
    """

    def __init__(
        self,
        draft: LanguageModel,
        target: LanguageModel,
        *,
        most: Count = 6,
        confidence: Fraction = 0.4,
        window: Count = 512,
        anchors: Whole = 4,
        room: Whole = 0,
    ) -> None:
        seen = anchors + 2 * window + most
        if seen > draft.about.context:
            raise UsageError(
                f"longspec: {anchors} anchors, twice a window of {window} and {most} drafted tokens do not fit in the draft "
                f"model's context of {draft.about.context}: set a smaller window"
            )
        super().__init__(draft, target, most=most, confidence=confidence, room=1)
        self.state = DraftState(draft, target, room or ROWS * seen, window=window, anchors=anchors)
