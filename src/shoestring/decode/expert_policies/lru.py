"""The experts that were used last stay, and the next layer's router says which to fetch."""

from collections.abc import Sequence

from shoestring.contract.experts import ExpertLayer, ExpertsAsked
from shoestring.decode.expert_policy import ExpertName, least_recent
from shoestring.method import Whole, method


@method(
    "decode",
    kind="expert policy",
    name="lru",
    paper="Fast Inference of Mixture-of-Experts Language Models with Offloading, arXiv:2312.17238",
    claim="Mixtral-8x7B with mixed quantisation runs on desktop hardware and free-tier Google Colab",
    cost="a product of the next layer's router with the tokens of a pass",
)
class LeastRecentlyUsed:
    """The experts of a layer that were asked last are in memory; those that the next layer's router chooses are fetched meanwhile.

    Artyom Eliseev and Denis Mazur, 2023, arXiv:2312.17238.

    As the stream changes little from layer to layer, router_{l+1}(x_l) is a guess of router_{l+1}(x_{l+1}); those are fetched
    that most tokens score among their best.

    Different from the paper: x_l is what the layer's own router reads, its norm included, where the paper takes the stream; and
    nothing is quantised, where the paper has experts in 2 to 3 bits.

    guesses: experts that are fetched ahead for each token of a pass; 0: none.
    """

    def __init__(self, *, guesses: Whole = 2) -> None:
        self.guesses = guesses
        self._layers: Sequence[ExpertLayer] = ()

    def know(self, layers: Sequence[ExpertLayer]) -> None:
        """As `ExpertPolicy.know`."""
        self._layers = layers

    def ahead(self, layer: int, called: ExpertsAsked) -> list[ExpertName]:
        """As `ExpertPolicy.ahead`."""
        following = layer + 1
        if not self.guesses or following == len(self._layers):
            return []
        return likeliest(self._layers[following], following, called, self.guesses)

    def leave(self, layer: int, held: Sequence[int], last: Sequence[int]) -> int:
        """As `ExpertPolicy.leave`."""
        return least_recent(held, last)


def likeliest(of: ExpertLayer, layer: int, called: ExpertsAsked, guesses: int) -> list[ExpertName]:
    """The experts of a layer that tokens score among their `guesses` best, those of the most tokens first. Of one that follows the
    layer that asks: those that it asks for."""
    if of.follows:
        return [ExpertName(layer, expert) for expert in called.experts]
    best = of.guess(called.x).topk(min(guesses, of.experts), -1).indices
    counts = best.flatten().bincount(minlength=of.experts)
    order = counts.argsort(descending=True, stable=True)
    return [ExpertName(layer, expert) for expert in order.tolist() if counts[expert]]
