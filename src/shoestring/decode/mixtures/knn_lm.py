"""A model's probabilities mixed with those of the nearest entries of a datastore."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import About, Depth, Head, LanguageModel, Reading
from shoestring.decode.datastore import Datastore, log_mixture, weighted
from shoestring.decode.row import Row
from shoestring.method import Count, Fraction, Positive, method


def neighbours(store: Datastore, hidden: Tensor, vocabulary: int, count: int, temperature: float) -> Tensor:
    """float32 [n, V], on the CPU: the probabilities of the nearest entries to hidden states [n, width]."""
    distances, places = store.search(hidden.cpu(), count)
    return weighted(store.tokens[places], distances / hidden.shape[1], vocabulary, temperature)


class NeighbourHead:
    """A `Head` that mixes: log((1 - share) p_model + share p_neighbours).

    head: the model's own. width: of its hidden states.
    """

    weight = None

    def __init__(self, head: Head, store: Datastore, share: float, count: int, temperature: float) -> None:
        self.head, self.store = head, store
        self.share, self.count, self.temperature = share, count, temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V], log-probabilities."""
        own = self.head.logits(hidden).float()
        near = neighbours(self.store, hidden.detach().flatten(0, -2), own.shape[-1], self.count, self.temperature)
        return log_mixture(own, near.to(own.device).view(own.shape), self.share)

    def flops(self, places: int) -> int:
        return self.head.flops(places) + self.store.flops(places)


@method(
    "decode",
    kind="mixture",
    name="knn_lm",
    paper="On Retrieval Augmentation and the Limitations of Language Model Training, arXiv:2311.09615",
    claim="neighbours from the training data alone lower GPT-2 117M's perplexity; a softmax bottleneck is not the reason",
    cost="2 N width operations a token for a datastore of N entries, and its bytes: width + 16 a token of text",
)
class KNNLM:
    """p(w) = (1 - share) p_model(w) + share p_near(w), p_near(w) ~ sum of exp(-d_i / temperature) over the nearest entries with w.

    A `LanguageModel`, for losses, and a `Mixture` of an engine (Generalization through Memorization, arXiv:1911.00172). Keys are
    the model's last hidden states as its head takes them, d_i the mean squared difference of a feature; the papers take the state
    before the last feed-forward layer, which a wrapped model does not show. The search looks at every entry. With `share` 0 it is
    the model.

    target: the model. place: a file that `Datastore.save` wrote.
    share: of the neighbours. neighbours: how many count. temperature: of the squared differences.
    """

    def __init__(
        self,
        target: LanguageModel,
        place: Path,
        *,
        share: Fraction = 0.25,
        neighbours: Count = 64,
        temperature: Positive = 0.1,
    ) -> None:
        self.model, self.store = target, Datastore.read(place, target)
        self.share, self.neighbours, self.temperature = share, neighbours, temperature
        self._charge = NOTHING

    def find(self, hidden: Tensor) -> Tensor:
        """As `Mixture.find`: float32 [n, V]."""
        self._charge += Charge(flops=self.store.flops(len(hidden)), moved=self.store.keys.nbytes)
        return neighbours(self.store, hidden, self.about.vocabulary, self.neighbours, self.temperature)

    def mixed(self, row: Row, logits: Tensor, hidden: Tensor, found: Tensor) -> Tensor:
        """As `Mixture.mixed`."""
        return log_mixture(logits, found, self.share)

    def spent(self) -> Charge:
        """As `Mixture.spent`."""
        charge, self._charge = self._charge, NOTHING
        return charge

    @property
    def about(self) -> About:
        return self.model.about

    @property
    def device(self) -> torch.device:
        return self.model.device

    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """As `LanguageModel.read`."""
        reading = self.model.read(inputs, cache, tap=tap, depth=depth)
        return replace(
            reading, head=NeighbourHead(reading.head, self.store, self.share, self.neighbours, self.temperature)
        )

    def new_cache(self, rows: int, room: int) -> Cache:
        return self.model.new_cache(rows, room)

    def cost(self, shape: Shape) -> Cost:
        """As `LanguageModel.cost`, the search included."""
        places = shape.head_places
        return self.model.cost(shape).beside(Cost(self.store.flops(places), self.store.nbytes, self.store.nbytes))
