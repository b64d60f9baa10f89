"""Several models that speak as one: their next-token probabilities mixed, by weights that follow the text."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoestring.contract.batch import Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.cost import Cost, Shape
from shoestring.contract.model import About, Depth, Head, LanguageModel, Reading
from shoestring.decode.expert_weights.base import Weigher
from shoestring.errors import UsageError

ROWS = 1024
"""Rows of logits held at a time where only the probabilities of some tokens are wanted."""


def mixture(log_probabilities: Tensor, weights: Tensor) -> Tensor:
    """log sum_j w_j p_j: float32 [...], from log p_j float32 [..., E] and w_j [..., E]; where w_j = 0, p_j may be anything."""
    terms = torch.where(weights > 0, log_probabilities + weights.clamp_min(1e-300).log(), -torch.inf)
    return terms.logsumexp(dim=-1).float()


def token_log_probabilities(head: Head, hidden: Tensor, tokens: Tensor) -> Tensor:
    """float32 [...]: log p(token) of `tokens` [...] under the logits that `head` makes of hidden [..., width], a block of rows
    at a time; 0 for tokens below 0, which count nothing."""
    flat, wanted = hidden.flatten(0, -2), tokens.flatten()
    found = []
    for start in range(0, len(flat), ROWS):
        logits = head.logits(flat[start : start + ROWS]).float()
        part = wanted[start : start + ROWS]
        chosen = logits.log_softmax(dim=-1).gather(-1, part.clamp_min(0)[:, None])[:, 0]
        found.append(torch.where(part >= 0, chosen, 0.0))
    return torch.cat(found).view(tokens.shape)


def likelihood_of_inputs(of_targets: Tensor) -> Tensor:
    """[B, T, E] log p_j(input t | inputs before it), from those of the targets (target t being input t + 1)."""
    return torch.cat([torch.zeros_like(of_targets[:, :1]), of_targets[:, :-1]], dim=1)


class MixedHead(NamedTuple):
    """The `Head` of a model whose hidden states are log-probabilities already."""

    weight: None = None

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def flops(self, places: int) -> int:
        return 0


class EnsembleCache(Cache):
    """What has been read: tokens [1, n], each expert's own cache (None until it is first consulted), and where likelihood
    counts, log p_j(token | before) [1, n, E] with each expert's log-probabilities of the token to come."""

    def __init__(self, experts: int, room: int) -> None:
        super().__init__([], 1, room)
        self.tokens = torch.empty(1, 0, dtype=torch.int64)
        self.caches: list[Any] = [None] * experts
        self.likelihood = torch.empty(1, 0, experts)
        self.expected = torch.empty(1, 0, 0, experts)
        self.weights: Tensor | None = None
        self.updated = -1

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches if cache is not None)

    @property
    def rewindable(self) -> bool:
        """The weights follow the text, and are not worked out anew."""
        return False

    def take(self, rows: Tensor) -> Cache:
        """Raises: UsageError: an ensemble is decoded one sequence at a time."""
        raise UsageError("an ensemble is decoded one sequence at a time")


class Ensemble:
    """p(x | x_<=t) = sum_j p(D = j | x_<=t) p_j(x | x_<=t), for experts of one vocabulary and any sizes.

    A `LanguageModel`. The ensemble of Li et al. (2022), "Branch-Train-Merge", arXiv:2208.03306, of c-BTM (Gururangan et al., 2023,
    arXiv:2303.14177) and of X-ELM (Blevins et al., 2024, arXiv:2401.10440); the posterior p(D = j | .) is the
    `weigher`'s. The hidden states of its `Reading` are log-probabilities [B, T, vocabulary], and its head is
    the identity. An expert is asked only where its weight is not 0: without a cache a row is read whole by each expert that
    counts anywhere in it; in decoding an expert reads what it has missed when its turn comes. The cost of a `Reading` is that
    of the experts that were asked.

    Raises: UsageError where the experts differ in vocabulary.
    """

    def __init__(self, experts: Sequence[LanguageModel], weigher: Weigher) -> None:
        if not experts:
            raise UsageError("an ensemble needs at least one expert")
        sizes = {expert.about.vocabulary for expert in experts}
        if len(sizes) > 1:
            raise UsageError(f"the experts' vocabularies differ: {', '.join(map(str, sorted(sizes)))} tokens")
        self.experts = tuple(experts)
        self.weigher = weigher
        parts = [expert.about for expert in experts]
        self.about = About(
            sizes.pop(),
            min(part.context for part in parts),
            max(part.width for part in parts),
            max(part.layers for part in parts),
        )
        self._cost = Cost()

    @property
    def device(self) -> torch.device:
        return self.experts[0].device

    def cost(self, shape: Shape) -> Cost:
        """The most that such a pass can take: every expert asked. What was taken is the `Reading`'s."""
        costs = [expert.cost(shape) for expert in self.experts]
        return functools.reduce(Cost.beside, costs)

    def new_cache(self, rows: int, room: int) -> EnsembleCache:
        """Raises: UsageError for more than one row."""
        if rows != 1:
            raise UsageError("an ensemble is decoded one sequence at a time")
        return EnsembleCache(len(self.experts), min(room, self.about.context))

    @torch.no_grad()
    def log_probabilities(self, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Cost]:
        """(float32 [B, T], the log-probability of each target, 0 where it is below 0; what that took). targets: [B, T]."""
        self._cost = Cost()

        def of(expert: int, rows: Tensor) -> Tensor:
            reading = self._read(expert, inputs.take(rows), len(rows) * inputs.length)
            return token_log_probabilities(reading.head, reading.hidden, targets[rows])

        mixed = self._mixed(inputs.values, targets, of)
        return torch.where(targets >= 0, mixed, 0.0), self._cost

    @torch.no_grad()
    def read(
        self, inputs: Inputs, cache: Cache | None = None, *, tap: Sequence[str] = (), depth: Depth | None = None
    ) -> Reading:
        """Log-probabilities [B, T, vocabulary] of the token after each of `inputs` [B, T]. With a cache (one row), those after
        the last alone, [1, 1, vocabulary]. Raises: UsageError for taps and a depth: ask an expert."""
        if tap or depth is not None:
            raise UsageError("an ensemble has no layers of its own: ask one of its experts")
        self._cost = Cost()
        if cache is not None:
            assert isinstance(cache, EnsembleCache)
            return Reading(self._decode(inputs, cache), MixedHead(), self._cost)
        targets = inputs.values.roll(-1, dims=1)
        targets[:, -1] = -1
        if inputs.documents is not None:
            targets[:, :-1][inputs.documents[:, 1:] != inputs.documents[:, :-1]] = -1

        def of(expert: int, rows: Tensor) -> Tensor:
            reading = self._read(expert, inputs.take(rows), len(rows) * inputs.length)
            return reading.logits().float().log_softmax(dim=-1)

        return Reading(self._mixed(inputs.values, targets, of), MixedHead(), self._cost)

    def _read(self, expert: int, inputs: Inputs, places: int, cache: Cache | None = None) -> Reading:
        """What an expert reads, its logits at so many places charged."""
        reading = self.experts[expert].read(inputs, cache)
        self._cost += reading.cost + Cost(reading.head.flops(places))
        return reading

    def _mixed(self, inputs: Tensor, targets: Tensor, of: Callable[[int, Tensor], Tensor]) -> Tensor:
        """float32 [B, T, ...]: log sum_j w_j exp(of(j)). of: (expert, rows) -> [rows, T, ...]."""
        found: dict[int, Tensor] = {}
        likelihood = None
        if self.weigher.needs_likelihood:
            everyone = torch.arange(len(inputs))
            found = {expert: of(expert, everyone) for expert in range(len(self.experts))}
            told = [_of_targets(values, targets) for values in found.values()]
            likelihood = likelihood_of_inputs(torch.stack(told, dim=-1))
        logarithms = self.weigher(inputs, likelihood).log().float().to(inputs.device)
        total: Tensor | None = None
        for expert in range(len(self.experts)):
            rows = (logarithms[:, :, expert] > -torch.inf).any(dim=1).nonzero()[:, 0]
            if not len(rows):
                continue
            values = found[expert][rows] if found else of(expert, rows)
            if total is None:
                total = values.new_full((*inputs.shape, *values.shape[2:]), -torch.inf)
            weight = logarithms[rows, :, expert].view(*values.shape[:2], *(1 for _ in values.shape[2:]))
            total[rows] = torch.logaddexp(total[rows], values + weight)
        assert total is not None
        return total

    def _decode(self, inputs: Inputs, cache: EnsembleCache) -> Tensor:
        cache.begin(inputs)
        new, before = inputs.values, cache.length
        cache.advance()
        cache.tokens = torch.cat([cache.tokens, new.cpu()], dim=1)
        every = self.weigher.every
        update = (cache.length - 1) // every * every
        answers: dict[int, Tensor] = {}
        if self.weigher.needs_likelihood:
            answers = {expert: self._catch_up(expert, cache) for expert in range(len(self.experts))}
            self._tell(answers, before, cache)
        if update != cache.updated:
            known = cache.likelihood[:, : update + 1] if self.weigher.needs_likelihood else None
            cache.weights, cache.updated = self.weigher(cache.tokens[:, : update + 1], known)[0, -1], update
        assert cache.weights is not None
        weights = cache.weights
        consulted = weights.nonzero()[:, 0].tolist()
        for expert in consulted:
            if expert not in answers:
                answers[expert] = self._catch_up(expert, cache)
        last = torch.stack([answers[expert][:, -1:] for expert in consulted], dim=-1)
        return mixture(last, weights[consulted].to(last.device).expand(last.shape))

    def _catch_up(self, expert: int, cache: EnsembleCache) -> Tensor:
        """Log-probabilities [1, n, vocabulary] after each of the tokens that the expert had not read; the last alone where
        likelihood does not count."""
        model = self.experts[expert]
        if cache.caches[expert] is None:
            cache.caches[expert] = model.new_cache(1, cache.room)
        own = cache.caches[expert]
        missed = cache.tokens[:, own.length :].to(model.device)
        outputs = missed.shape[1] if self.weigher.needs_likelihood else 1
        reading = self._read(expert, Inputs(missed), outputs, own)
        return reading.head.logits(reading.hidden[:, -outputs:]).float().log_softmax(dim=-1)

    def _tell(self, answers: dict[int, Tensor], before: int, cache: EnsembleCache) -> None:
        """Note how likely each expert held the new tokens, and what it expects next."""
        stacked = torch.stack([answers[expert] for expert in range(len(self.experts))], dim=-1).cpu()
        new, expected = cache.tokens[:, before:], stacked[:, :-1]
        if before:
            expected = torch.cat([cache.expected, expected], dim=1)
        foretold = new[:, new.shape[1] - expected.shape[1] :]
        told = expected.gather(2, foretold[:, :, None, None].expand(-1, -1, 1, len(answers)))[:, :, 0]
        if not before:
            told = torch.cat([torch.zeros(1, 1, len(answers)), told], dim=1)
        cache.likelihood = torch.cat([cache.likelihood, told], dim=1)
        cache.expected = stacked[:, -1:]


def _of_targets(values: Tensor, targets: Tensor) -> Tensor:
    """[B, T] from log-probabilities of the targets, or [B, T, vocabulary] of all tokens; 0 for targets below 0."""
    if values.dim() == 3:
        values = values.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return torch.where(targets >= 0, values, 0.0)
