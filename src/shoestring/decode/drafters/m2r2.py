"""Drafts of the model's own first layers, read from a residual stream that runs ahead."""

from pathlib import Path

from shoestring.contract.model import LanguageModel
from shoestring.decode.accelerated import NAME, Accelerated
from shoestring.decode.drafters.draft_model import DraftModel
from shoestring.method import Count, Fraction, Whole, method


@method(
    "decode",
    kind="drafter",
    name=NAME,
    paper="M2R2: Mixture of Multi-Rate Residuals for Efficient Transformer Inference, arXiv:2502.02040",
    claim="up to 2.8x faster self-speculative decoding on MT-Bench, faster than a second model, Medusa, LookAhead and DEED",
    cost="the first layers and two low-rank products a layer for each token of a draft; a cache of those layers of its own",
)
class M2R2(DraftModel):
    """The model's first layers draft, from a fast residual stream that was trained to be where the last layer will be.

    The stream is `decode.accelerated.Accelerated`. The slow one beside it is the model's own. How far a draft goes is set by the
    confidence of each token, which stands for the paper's router of the rate; the paper's experts that are loaded ahead of time
    are not here. The drafting layers keep a cache of their own, where the paper shares the model's.

    target: the model that writes, a native or bridged one. place: a file that `Accelerated.save` wrote.
    most: tokens of a draft.
    confidence: the least probability of the stream's likeliest token; 0: drafts have `most` tokens.
    room: as for draft_model.
    """

    def __init__(
        self, target: LanguageModel, place: Path, *, most: Count = 4, confidence: Fraction = 0.4, room: Whole = 0
    ) -> None:
        super().__init__(Accelerated.read_from(place, target), target, most=most, confidence=confidence, room=room)
