"""Later tokens go through fewer layers."""

from functools import lru_cache

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModel
from shoestring.decode.depth import RowDepth
from shoestring.decode.row import Row
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method


@method(
    "decode",
    kind="depth",
    name="skip_decode",
    paper="SkipDecode: Autoregressive Skip Decoding with Batching and Caching for Efficient LLM Inference, arXiv:2307.02628",
    claim="2x to 5x faster inference with negligible loss on several tasks, with OPT 1.3B and 6.7B after fine-tuning",
    cost="none; rows at other places of their answers are read in passes of their own",
)
class SkipDecode(RowDepth):
    """The k-th of an answer's N tokens goes through L_k layers, which falls in a line from `most` to `least` of all L.

    L_k = L (most - (most - least) k / (N - 1)), rounded, k = 0 .. N - 1, N being what the request allows. The layers are the lowest
    `warm`, and the L_k - `warm` at the top; those between are bypassed. As L_k never grows, a token finds the keys of all before
    it in each of its layers. A prompt goes through all. On average an answer takes (most + least) / 2 of the layers.

    The paper fine-tunes the model for the schedule, and aligns a batch by place; here rows of other places have a pass of their
    own.

    target: the model that writes.
    most, least: shares of the layers, of the first token and the last.
    warm: layers at the bottom that every token goes through.
    """

    def __init__(self, target: LanguageModel, *, most: Fraction = 1.0, least: Fraction = 0.5, warm: Count = 1) -> None:
        total = target.about.layers
        if least > most:
            raise ValueError(f"skip_decode: least = {least} is more than most = {most}, and layers cannot come back")
        if warm >= total or round(total * least) <= warm:
            raise UsageError(
                f"skip_decode: {least:.0%} of {total} layers leave none above the {warm} at the bottom: raise `least`"
            )
        self.total, self.most, self.least, self.warm = total, most, least, warm
        self._sets = lru_cache(self._of)

    def layers(self, row: Row, place: int) -> frozenset[int] | None:
        """As `RowDepth.layers`."""
        number, last = place - len(row.request.prompt), max(row.request.max_new_tokens - 1, 1)
        if number < 0:
            return None
        share = self.most - (self.most - self.least) * min(number, last) / last
        return self._sets(round(self.total * share))

    def spent(self) -> Charge:
        """Nothing: the place alone decides."""
        return NOTHING

    def _of(self, count: int) -> frozenset[int] | None:
        """The layers, where there are so many."""
        if count == self.total:
            return None
        return frozenset(range(self.warm)) | frozenset(range(self.total - count + self.warm, self.total))
