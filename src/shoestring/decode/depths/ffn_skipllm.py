"""Later channel mixers are left out for tokens whose hidden states have settled."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import Depth, LanguageModel, Mixer
from shoestring.decode.depth import RowDepth
from shoestring.decode.row import Row
from shoestring.decode.work import RowWork
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, Whole, method


class Settled(Depth):
    """A `contract.model.Depth` that leaves out channel mixers, place by place. What it is asked of may come in several passes, one
    after the other.

    able: of each place of all these passes, whether it may leave one out.
    first, last: the layers whose mixers may be left out, `last` not among them.
    similarity: at which a place has settled. most: mixers that are left out after that; then the place is as if it had not.
    asked, left: mixers that were asked and left out, of all places and layers.
    """

    def __init__(self, able: Sequence[bool], first: int, last: int, similarity: float, most: int) -> None:
        self.first, self.last, self.similarity, self.most = first, last, similarity, most
        self._coming = list(able)
        self._able = self._settled = torch.zeros(1, 0, dtype=torch.bool)
        self._left_out = torch.zeros(1, 0, dtype=torch.int64)
        self.asked = self.left = 0

    def times(self, layer: int, hidden: Tensor) -> int:
        """Once: keys and values are there in every layer."""
        if layer == 0:  # a pass begins
            count = hidden.shape[1]
            self._able = torch.tensor([self._coming[:count]], device=hidden.device)
            self._settled = torch.zeros_like(self._able)
            self._left_out = torch.zeros_like(self._able, dtype=torch.int64)
            del self._coming[:count]
        return 1

    def channels(self, layer: int, hidden: Tensor, mix: Mixer) -> tuple[Tensor, Tensor | None]:
        """As `Depth.channels`."""
        if not self.first <= layer < self.last:
            self.asked += self._able.numel()
            return mix(hidden), None
        asked = ~(self._settled & (self._left_out < self.most))
        self._left_out += ~asked
        count, total = int(asked.sum()), asked.numel()
        self.asked, self.left = self.asked + count, self.left + total - count
        added = torch.zeros_like(hidden)
        if count:
            before = hidden[asked]
            change = added[asked] = mix(before)
            near = F.cosine_similarity(before.float(), (before + change).float(), dim=-1) >= self.similarity
            self._settled[asked] |= near & self._able[asked]
        return added, None if count == total else asked


@method(
    "decode",
    kind="depth",
    name="ffn_skipllm",
    paper="FFN-SkipLLM: A Hidden Gem for Autoregressive Decoding with Adaptive Feed Forward Skipping, arXiv:2404.03865",
    claim="25 to 30% of the feed-forward blocks of LLaMA models are skipped with marginal change on knowledge-intensive tasks, and "
    "no state is copied",
    cost="a cosine for each feed-forward block that is asked; module by module in place of one native call",
)
class FFNSkipLLM(RowDepth):
    """Once the feed-forward block of a layer hardly turns a token's hidden state, those of the layers after it are left out.

    In layer l, x' = x + ffn_l(x). A token of an answer settles at the first layer of `cold` .. L - `cold` - 1 with
    cos(x, x') >= `similarity`. From the next of these layers on, its feed-forward blocks are left out, `most` of all L at most;
    attention goes on in all layers. The first and last `cold` layers are always whole, and so are the prompt and the first `warm`
    tokens of an answer. Where a model's hidden states are long, every block hardly turns them: then `most` alone decides.

    Each token decides for itself, so rows of any places share a pass. It changes the text. What follows the first block that was
    left out lends its keys to no other request.

    target: the model that writes, a native one.
    similarity: of the hidden state before and after the block. most: share of all blocks. cold: layers at each end.
    warm: tokens of an answer.
    """

    def __init__(
        self,
        target: LanguageModel,
        *,
        similarity: Fraction = 0.95,
        most: Fraction = 0.25,
        cold: Count = 1,
        warm: Whole = 4,
    ) -> None:
        total = target.about.layers
        if total < 2 * cold + 2:
            raise UsageError(
                f"ffn_skipllm: {cold} whole layers at each end of {total} leave none to leave out: lower `cold`"
            )
        self.total, self.similarity, self.cold, self.warm = total, similarity, cold, warm
        self.most = max(1, round(most * total))
        self.asked = self.left = 0
        """Feed-forward blocks that were asked, and left out, of all tokens of all passes."""
        self._latest: Settled | None = None

    def layers(self, row: Row, place: int) -> frozenset[int] | None:
        """All: attention goes on."""
        return None

    def through(self, chosen: frozenset[int] | None, works: Sequence[RowWork]) -> Depth | None:
        """As `RowDepth.through`. None where no place may leave anything out."""
        self._count()
        able = [
            place >= len(work.row.request.prompt) + self.warm
            for work in works
            for place in range(work.row.held, work.row.held + work.new)
        ]
        if not any(able):
            return None
        self._latest = Settled(able, self.cold, self.total - self.cold, self.similarity, self.most)
        return self._latest

    @property
    def share(self) -> float:
        """Of all feed-forward blocks of the passes that might leave one out, the share that was left out."""
        self._count()
        return self.left / max(self.asked + self.left, 1)

    def _count(self) -> None:
        if self._latest is not None:
            self.asked, self.left = self.asked + self._latest.asked, self.left + self._latest.left
        self._latest = None

    def spent(self) -> Charge:
        """Nothing beside the passes: cosines are no products of matrices."""
        return NOTHING
