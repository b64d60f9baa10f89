"""A datastore as an automaton: most searches are saved by going on from the entries of the step before."""

from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.decode.datastore import Datastore, weighted
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, Seed, method


def k_means(points: Tensor, count: int, seed: int, rounds: int = 10) -> Tensor:
    """[N] int64: the nearest of `count` means of these points [N, width], after so many rounds of Lloyd's algorithm."""
    generator = torch.Generator().manual_seed(seed)
    points = points.float()
    means = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    labels = torch.zeros(len(points), dtype=torch.int64)
    for _ in range(rounds):
        labels = torch.cdist(points, means).argmin(1)
        sums = torch.zeros_like(means).index_add_(0, labels, points)
        sizes = torch.bincount(labels, minlength=len(means))
        means = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], means)
    return labels


@dataclass(frozen=True)
class AutomatonWalk:
    """What an automaton said along a text.

    probabilities: [T, V], of the token after each place, of the datastore alone.
    searched: of each place, whether the whole datastore was searched.
    looked_at: entries that were compared, all in all.
    """

    probabilities: Tensor
    searched: list[bool]
    looked_at: int

    @property
    def saved(self) -> float:
        """Share of places at which no search was needed."""
        return 1 - sum(self.searched) / len(self.searched)

    def mixed(self, own: Tensor, share: float) -> Tensor:
        """log((1 - share) p_model + share p_automaton), of log-probabilities [T, V] of the model."""
        return ((1 - share) * own.exp() + share * self.probabilities).clamp_min(1e-30).log()


@method(
    "decode",
    kind="automaton",
    name="retomaton",
    paper="Neuro-Symbolic Language Modeling with Automaton-augmented Retrieval, arXiv:2201.12431",
    claim="saves up to 83% of the nearest-neighbour searches without hurting perplexity, or lowers it by up to 1.85",
    cost="the entries of a few clusters a step, and a search where too few pointers are left",
)
class RetoMaton:
    """A datastore as an automaton: a step goes on from the entries of the one before.

    States are clusters of entries. From the entries of a step whose token is the one that came, pointers lead to the entries
    after them; their clusters are the states of the next step, and all entries in them count for its probabilities.

    p(w) ~ sum of exp(-d_i / temperature) over the entries i in those states with token w, d_i the mean squared difference of a
    feature. Where fewer than `least` pointers are left, the `neighbours` nearest of all entries are searched for instead, and a
    walk begins anew.

    It goes along one text, its tokens known or chosen one by one (`walk`); an engine that mixes rows has no place for its states.

    store: the datastore.
    clusters: states. neighbours: of a search. least: pointers without which a search is made. temperature: as for `knn_lm`.
    seed: of the clusters' beginnings.
    """

    def __init__(
        self,
        store: Datastore,
        *,
        clusters: Count = 256,
        neighbours: Count = 64,
        least: Count = 1,
        temperature: Positive = 0.1,
        seed: Seed = 0,
    ) -> None:
        self.store, self.neighbours, self.least, self.temperature = store, neighbours, least, temperature
        self.labels = k_means(store.keys, min(clusters, len(store)), seed)
        order = self.labels.argsort(stable=True)
        self._members = order.split(torch.bincount(self.labels).tolist())

    def walk(self, hidden: Tensor, tokens: Tensor, vocabulary: int) -> AutomatonWalk:
        """What it says along a text. hidden: [T, width], the model's last hidden states. tokens: [T], the token after each
        place."""
        if len(hidden) != len(tokens):
            raise UsageError(f"{len(hidden)} places and {len(tokens)} tokens do not go together")
        found, searched, looked_at = list[Tensor](), list[bool](), 0
        pointers = torch.zeros(0, dtype=torch.int64)
        for query, token in zip(hidden.cpu(), tokens.tolist(), strict=True):
            searched.append(len(pointers) < self.least)
            if searched[-1]:
                distances, places = (each[0] for each in self.store.search(query[None], self.neighbours))
                looked_at += len(self.store)
            else:
                states = self.labels[pointers].unique().tolist()
                places = torch.cat([self._members[state] for state in states])
                distances = self.store.distances(query, places)
                looked_at += len(places)
            values = self.store.tokens[places]
            found.append(weighted(values[None], distances[None] / len(query), vocabulary, self.temperature)[0])
            pointers = self.store.next(places[values == token])
        return AutomatonWalk(torch.stack(found), searched, looked_at)
