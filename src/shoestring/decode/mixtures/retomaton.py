"""A datastore as an automaton: most searches are saved by going on from the entries of the step before."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.model import LanguageModel
from shoestring.decode.datastore import Datastore, log_mixture, weighted
from shoestring.decode.row import Row
from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, Positive, Seed, method

ROUNDS = 10
"""Of Lloyd's algorithm."""


def k_means(points: Tensor, count: int, seed: int, rounds: int = ROUNDS) -> Tensor:
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
        return log_mixture(own, self.probabilities, share)


class AutomatonStep(NamedTuple):
    """One step of a walk.

    probabilities: [V]. places: [n], the entries that counted. tokens: [n], theirs.
    looked_at: entries that were compared. searched: whether these are all.
    """

    probabilities: Tensor
    places: Tensor
    tokens: Tensor
    looked_at: int
    searched: bool


class Memory(NamedTuple):
    """Of a row: its length when the step was made, and the step."""

    length: int
    step: AutomatonStep


@method(
    "decode",
    kind="mixture",
    name="retomaton",
    paper="Neuro-Symbolic Language Modeling with Automaton-augmented Retrieval, arXiv:2201.12431",
    claim="saves up to 83% of the nearest-neighbour searches without hurting perplexity, or lowers it by up to 1.85",
    cost="the entries of a few clusters a step, and a search where too few pointers are left; clusters are made at the start",
)
class RetoMaton:
    """A datastore as an automaton: a step goes on from the entries of the one before.

    States are clusters of entries. From the entries of a step whose token is the one that came, pointers lead to the entries
    after them; their clusters are the states of the next step, and all entries in them count for its probabilities.

    p(w) = (1 - share) p_model(w) + share p_automaton(w), p_automaton(w) ~ sum of exp(-d_i / temperature) over the entries i in
    those states with token w, d_i the mean squared difference of a feature. Where fewer than `least` pointers are left, the
    `neighbours` nearest of all entries are searched for instead, and a walk begins anew.

    `walk` goes along a text that is known. As a `Mixture` of an engine, each answer has a walk of its own, which begins at its
    first token.

    target: the model. place: a file that `Datastore.save` wrote.
    share: of the automaton. clusters: states. neighbours: of a search. least: pointers without which a search is made.
    temperature: as for `knn_lm`. seed: of the clusters' beginnings.
    """

    def __init__(
        self,
        target: LanguageModel,
        place: Path,
        *,
        share: Fraction = 0.25,
        clusters: Count = 256,
        neighbours: Count = 64,
        least: Count = 1,
        temperature: Positive = 0.1,
        seed: Seed = 0,
    ) -> None:
        self.store, self.vocabulary = Datastore.read(place, target), target.about.vocabulary
        self.share, self.neighbours, self.least, self.temperature = share, neighbours, least, temperature
        count = min(clusters, len(self.store))
        self.labels = k_means(self.store.keys, count, seed)
        order = self.labels.argsort(stable=True)
        self._members = order.split(torch.bincount(self.labels).tolist())
        self.made = Charge(flops=2 * ROUNDS * count * self.store.keys.numel())
        """What the clusters took."""
        self.steps = self.searches = 0
        """Of all answers so far."""
        self._charge = NOTHING

    def step(self, query: Tensor, pointers: Tensor, vocabulary: int) -> AutomatonStep:
        """Where the hidden state [width] of a place leads to, from these pointers [n]."""
        searched = len(pointers) < self.least
        if searched:
            distances, places = (each[0] for each in self.store.search(query[None], self.neighbours))
        else:
            states = self.labels[pointers].unique().tolist()
            places = torch.cat([self._members[state] for state in states])
            distances = self.store.distances(query, places)
        tokens = self.store.tokens[places]
        found = weighted(tokens[None], distances[None] / len(query), vocabulary, self.temperature)[0]
        return AutomatonStep(found, places, tokens, len(self.store) if searched else len(places), searched)

    def find(self, hidden: Tensor) -> Sequence[None]:
        """As `Mixture.find`: nothing is known before the token of the place before is."""
        return [None] * len(hidden)

    def mixed(self, row: Row, logits: Tensor, hidden: Tensor, found: None) -> Tensor:
        """As `Mixture.mixed`."""
        memory, pointers = row.memory, torch.zeros(0, dtype=torch.int64)
        if isinstance(memory, Memory) and memory.length == len(row.tokens) - 1:
            pointers = self.store.next(memory.step.places[memory.step.tokens == row.tokens[-1]])
        step = self.step(hidden.cpu(), pointers, self.vocabulary)
        row.memory = Memory(len(row.tokens), step)
        self.steps, self.searches = self.steps + 1, self.searches + step.searched
        width = self.store.keys.shape[1]
        size = step.looked_at * width
        self._charge += Charge(flops=2 * size, moved=size * self.store.keys.element_size())
        return log_mixture(logits, step.probabilities, self.share)

    def spent(self) -> Charge:
        """As `Mixture.spent`."""
        charge, self._charge = self._charge, NOTHING
        return charge

    def walk(self, hidden: Tensor, tokens: Tensor, vocabulary: int) -> AutomatonWalk:
        """What it says along a text. hidden: [T, width], the model's last hidden states. tokens: [T], the token after each
        place."""
        if len(hidden) != len(tokens):
            raise UsageError(f"{len(hidden)} places and {len(tokens)} tokens do not go together")
        steps, pointers = list[AutomatonStep](), torch.zeros(0, dtype=torch.int64)
        for query, token in zip(hidden.cpu(), tokens.tolist(), strict=True):
            steps.append(self.step(query, pointers, vocabulary))
            pointers = self.store.next(steps[-1].places[steps[-1].tokens == token])
        found = torch.stack([step.probabilities for step in steps])
        return AutomatonWalk(found, [step.searched for step in steps], sum(step.looked_at for step in steps))
