"""Prompts that lose tokens on the way through the layers, by a schedule for a budget of operations."""

import itertools
from typing import Annotated

from annotated_types import Interval
from torch import Tensor

from shoestring.contract.length_drop import DroppingCache, counts_of, even_shares
from shoestring.contract.model import LanguageModel
from shoestring.decode.text_cache import TextCache
from shoestring.errors import UsageError
from shoestring.method import Fraction, method


class LengthAdaptiveCache(DroppingCache, TextCache):
    """As `DroppingCache`, of a prompt whose length is told before it is read. shares: of it that each layer takes in."""

    def __init__(self, shares: list[float], room: int) -> None:
        super().__init__([0] * len(shares), 0, room)
        self.shares = shares

    def allowed(self, prompt: int) -> int:
        """As `TextCache.allowed`."""
        if not self.length:
            self.plan(counts_of(self.shares, prompt), prompt)
        return max(1, prompt - self.length)

    def settle(self, prompt: int) -> None:
        """Nothing: what leaves does so on the way."""

    def take(self, rows: Tensor) -> TextCache:
        made = super().take(rows)
        assert isinstance(made, TextCache)
        return made


@method(
    "decode",
    kind="cache store",
    name="length_adaptive",
    paper="QuaLA-MiniLM: a Quantized Length Adaptive MiniLM, arXiv:2210.17114; Length-Adaptive Transformer: Train Once with Length "
    "Drop, Use Anytime with Search, arXiv:2010.07003",
    claim="one trained encoder for every budget: up to 8.8 times as fast on SQuAD1.1 with less than 1 % of accuracy lost",
    cost="holds and reads fewer tokens of the prompt in each layer; a product with the keys a layer to choose them",
)
class LengthAdaptive:
    """Read a prompt with fewer tokens in each layer; those that leave do not come back.

    Shira Guskin et al., 2022, arXiv:2210.17114; Gyuwan Kim and Kyunghyun Cho, 2021, arXiv:2010.07003.

        s_i = mean_h A_h[last, i],   layer l takes in the n_l tokens of largest s of the layer before,  n_0 = n >= n_1 >= ...

    The source's encoders score a token by the attention that all others pay it. A causal model reads a prompt for what comes after
    it: here its last token asks, and stays. Tokens that are written go through all layers, and see what stayed in each. So a
    classifier that answers with a word is the source's case. For models that the objective `length_adaptive` trained; others lose
    more. The source adds low-bit weights: quantise the trained run.

    budget: share of the operations of reading a prompt, attention's square apart; each layer keeps as large a part of what came to
    it. shares: of the prompt that each layer takes in, in place of it, as `decode.length_search` finds them. For native models.
    """

    def __init__(
        self, *, budget: Annotated[float, Interval(gt=0, le=1)] = 0.5, shares: tuple[Fraction, ...] = ()
    ) -> None:
        if any(later > share for share, later in itertools.pairwise(shares)):
            raise ValueError(f"length_adaptive: no layer takes in more than the one before: {list(shares)}")
        self.budget, self.shares = budget, shares

    def cache(self, model: LanguageModel, room: int) -> LengthAdaptiveCache:
        """As `TextStore.cache`."""
        layers = model.about.layers
        if self.shares and (len(self.shares) != layers or self.shares[0] != 1):
            raise UsageError(
                f"length_adaptive: shares has {len(self.shares)} numbers: give {layers}, the first of them 1"
            )
        least = 1 / layers
        if not self.shares and self.budget < least:
            raise UsageError(
                f"length_adaptive: the first of {layers} layers reads all, so the least budget is {least:.3g}"
            )
        return LengthAdaptiveCache(list(self.shares) or even_shares(layers, self.budget), room)
