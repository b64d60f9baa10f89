"""Several models that speak as one: their next-token probabilities mixed, by weights that follow the text."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.decode.expert_weights.base import Weigher
from shoestring.decode.generate import CachedModel
from shoestring.errors import UsageError

ROWS = 1024
"""Rows of logits held at a time where only the probabilities of some tokens are wanted."""


def mixture(log_probabilities: Tensor, weights: Tensor) -> Tensor:
    """log sum_j w_j p_j: float32 [...], from log p_j float32 [..., E] and w_j [..., E]; where w_j = 0, p_j may be anything."""
    terms = torch.where(weights > 0, log_probabilities + weights.clamp_min(1e-300).log(), -torch.inf)
    return terms.logsumexp(dim=-1).float()


def token_log_probabilities(hidden: Tensor, head_weight: Tensor, tokens: Tensor) -> Tensor:
    """float32 [...]: log p(token) of `tokens` [...] under the logits hidden [..., width] @ head_weight.T, a block of rows at
    a time; 0 for tokens below 0, which count nothing."""
    flat, wanted = hidden.flatten(0, -2), tokens.flatten()
    found = []
    for start in range(0, len(flat), ROWS):
        logits = F.linear(flat[start : start + ROWS], head_weight).float()
        part = wanted[start : start + ROWS]
        chosen = logits.log_softmax(dim=-1).gather(-1, part.clamp_min(0)[:, None])[:, 0]
        found.append(torch.where(part >= 0, chosen, 0.0))
    return torch.cat(found).view(tokens.shape)


def likelihood_of_inputs(of_targets: Tensor) -> Tensor:
    """[B, T, E] log p_j(input t | inputs before it), from those of the targets (target t being input t + 1)."""
    return torch.cat([torch.zeros_like(of_targets[:, :1]), of_targets[:, :-1]], dim=1)


class HeadDone:
    """Stands for the output matrix of a model whose hidden states are log-probabilities already: `linear` by it changes
    nothing. device: where its inputs are wanted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.linear:
            raise TypeError(f"an ensemble has no output matrix to apply {function} to")
        return args[0]


class EnsembleCache:
    """What has been read: tokens [1, n], each expert's own cache (None until it is first consulted), and where likelihood
    counts, log p_j(token | before) [1, n, E] with each expert's log-probabilities of the token to come."""

    def __init__(self, experts: int, capacity: int) -> None:
        self.tokens = torch.empty(1, 0, dtype=torch.int64)
        self.caches: list[Any] = [None] * experts
        self.likelihood = torch.empty(1, 0, experts)
        self.expected = torch.empty(1, 0, 0, experts)
        self.capacity = capacity
        self.weights: Tensor | None = None
        self.updated = -1

    @property
    def length(self) -> int:
        return self.tokens.shape[1]


class Ensemble:
    """p(x | x_<=t) = sum_j p(D = j | x_<=t) p_j(x | x_<=t), for experts of one vocabulary and any sizes.

    The ensemble of Li et al. (2022), "Branch-Train-Merge", arXiv:2208.03306, of c-BTM (Gururangan et al., 2023,
    arXiv:2303.14177) and of X-ELM (Blevins et al., 2024, arXiv:2401.10440); the posterior p(D = j | .) is the
    `weigher`'s. It can be decoded by `generate` and evaluated like a model: its `hidden` are log-probabilities [B, T,
    vocabulary] and its head is the identity. An expert is asked only where its weight is not 0: in `hidden` and
    `log_probabilities` a row is read whole by each expert that counts anywhere in it; in decoding an expert reads what
    it has missed when its turn comes. flops_spent: operations of all the experts asked so far.

    Raises: UsageError where the experts differ in vocabulary.
    """

    def __init__(self, experts: Sequence[CachedModel], weigher: Weigher) -> None:
        if not experts:
            raise UsageError("an ensemble needs at least one expert")
        sizes = {expert.config.vocabulary for expert in experts}
        if len(sizes) > 1:
            raise UsageError(f"the experts' vocabularies differ: {', '.join(map(str, sorted(sizes)))} tokens")
        self.experts: tuple[Any, ...] = tuple(experts)
        self.weigher = weigher
        self.vocabulary = sizes.pop()
        context = min(expert.config.context for expert in experts)
        self.config = SimpleNamespace(context=context, vocabulary=self.vocabulary)
        self.flops_spent = 0

    @property
    def head_weight(self) -> Any:
        return HeadDone(self.device)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.experts[0].device
        return device

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` as it is: log-probabilities already."""
        return hidden

    def flops(
        self, batch: int, length: int, backward: bool = False, *, past: int = 0, outputs: int | None = None
    ) -> int:
        """The most operations that such a pass can take: every expert asked. What was taken is `flops_spent`."""
        return sum(expert.flops(batch, length, backward, past=past, outputs=outputs) for expert in self.experts)

    def new_cache(self, batch: int, length: int) -> EnsembleCache:
        if batch != 1:
            raise UsageError("an ensemble is decoded one sequence at a time")
        return EnsembleCache(len(self.experts), length)

    @torch.no_grad()
    def log_probabilities(
        self, inputs: Tensor, targets: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """float32 [B, T]: the log-probability of each target (0 where it is below 0), all arguments [B, T]."""

        def of(expert: int, rows: Tensor) -> Tensor:
            hidden = self._read(expert, rows, inputs, positions, documents)
            return token_log_probabilities(hidden, self.experts[expert].head_weight, targets[rows])

        mixed = self._mixed(inputs, targets, of)
        return torch.where(targets >= 0, mixed, 0.0)

    @torch.no_grad()
    def hidden(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: EnsembleCache | None = None,
    ) -> Tensor:
        """Log-probabilities [B, T, vocabulary] of the token after each of `inputs` [B, T]. With a cache (batch 1), those after
        the last alone, [1, 1, vocabulary]."""
        if cache is not None:
            return self._decode(inputs, cache)
        targets = inputs.roll(-1, dims=1)
        targets[:, -1] = -1
        if documents is not None:
            targets[:, :-1][documents[:, 1:] != documents[:, :-1]] = -1

        def of(expert: int, rows: Tensor) -> Tensor:
            hidden = self._read(expert, rows, inputs, positions, documents)
            return self.experts[expert].logits(hidden).float().log_softmax(dim=-1)

        return self._mixed(inputs, targets, of)

    def _read(
        self, expert: int, rows: Tensor, inputs: Tensor, positions: Tensor | None, documents: Tensor | None
    ) -> Tensor:
        self.flops_spent += self.experts[expert].flops(len(rows), inputs.shape[1], False)
        hidden: Tensor = self.experts[expert].hidden(
            inputs[rows], None if positions is None else positions[rows], None if documents is None else documents[rows]
        )
        return hidden

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

    def _decode(self, new: Tensor, cache: EnsembleCache) -> Tensor:
        if cache.length + new.shape[1] > min(cache.capacity, self.config.context):
            raise UsageError(f"{cache.length + new.shape[1]} tokens do not fit in a context of {self.config.context}")
        before = cache.length
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
            cache.caches[expert] = model.new_cache(1, cache.capacity)
        own = cache.caches[expert]
        missed = cache.tokens[:, own.length :].to(model.device)
        outputs = missed.shape[1] if self.weigher.needs_likelihood else 1
        self.flops_spent += model.flops(1, missed.shape[1], False, past=own.length, outputs=outputs)
        hidden = model.hidden(missed, cache=own)[:, -outputs:]
        logits: Tensor = model.logits(hidden)
        return logits.float().log_softmax(dim=-1)

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
