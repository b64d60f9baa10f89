"""Writing by filling in: all of an answer is hidden at first, and each step shows some of it."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.config import Choice, Pick
from shoestring.contract.batch import HIDDEN, Inputs
from shoestring.contract.cache import Cache
from shoestring.contract.model import LanguageModel, Reading
from shoestring.decode.denoising import DenoisingCache, DenoisingStep, UnmaskingOrder
from shoestring.decode.draws import draw
from shoestring.decode.request import Answer, AnswerSpent, Stop
from shoestring.decode.sampling import Sampling, choose
from shoestring.errors import UsageError
from shoestring.method import Whole

ORDER = Pick("decode", "denoising order", default="confidence")
CACHE = Pick("decode", "denoising cache")


@dataclass(frozen=True)
class DenoisingConfig:
    """How hidden tokens are filled in.

    steps: passes of the model for an answer; 0: one for each token.
    block: tokens that are filled in before those that come after them are begun; 0: all at once.
    order: which are filled in first.
    cache: which keys and values are kept from step to step; left out: none, each pass computes all.
    """

    steps: Whole = 0
    block: Whole = 0
    order: Annotated[Choice, ORDER] = field(default_factory=ORDER.choice)
    cache: Annotated[Choice, CACHE] | None = None


class Denoiser:
    """Fills in answers with one model that sees both ways and reads hidden tokens, a text at a time.

    An answer of n tokens begins as n hidden ones after the prompt. Blocks of them are filled in from left to right. Each step of a
    block reads the text, chooses a token for every hidden place of the block as `Sampling` says, and keeps as many of them as its
    share is, in the order that the configuration names. What a place would get is drawn of a number that belongs to the request's
    seed and the place. An answer ends where a token ends it; what was filled in after that counts as wasted.

    Penalties and bias depend on what came before, which here may not be there yet: they are refused.

    Raises: UsageError for a model that is causal or reads no hidden tokens, and where the cache needs an order known ahead.
    """

    def __init__(self, model: LanguageModel, config: DenoisingConfig | None = None) -> None:
        config = config or DenoisingConfig()
        if model.about.causal:
            raise UsageError(
                "this model predicts the next token, and fills in no hidden ones: decode it token by token"
            )
        if not model.about.hides:
            raise UsageError(
                "this model sees both ways and reads no hidden tokens: it is an encoder, and writes nothing"
            )
        self.model, self.config = model, config
        self.order: UnmaskingOrder = config.order.build()
        self.cache: DenoisingCache | None = None if config.cache is None else config.cache.build()
        if self.cache is not None and config.cache is not None and self.cache.ahead and not self.order.ahead:
            raise UsageError(
                f"{config.cache.name} computes what a step will fill, and the order '{config.order.name}' is known after the pass: "
                "give --denoise.order random_order"
            )

    @torch.no_grad()
    def answer(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_new_tokens: int = 256,
        ends: Collection[int] = (),
        number: int = 1,
        sample: int = 0,
    ) -> Answer:
        """One answer. number: of the request. sample: which of its answers, each of which is drawn by itself.

        Raises: UsageError for an empty prompt, one that fills the context, and settings that depend on what came before.
        """
        began = time.perf_counter()
        if not prompt:
            raise UsageError("the prompt is empty: it needs at least one token")
        if sampling.changes_logits:
            raise UsageError("penalties and bias depend on the tokens before, which may be hidden here: leave them out")
        context = self.model.about.context
        new = min(max_new_tokens, context - len(prompt))
        if new < 1:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens, and this model reads {context}: no place is left to fill in"
            )
        filled = _Text(self, list(prompt), new, sampling, sample).fill()
        tokens = filled.values[len(prompt) :].tolist()
        written = next((place for place, token in enumerate(tokens) if token in ends), new)
        stop = Stop.END if written < new else Stop.LENGTH if new == max_new_tokens else Stop.CONTEXT
        wasted = filled.computed - len(prompt) - written
        charge = Charge(
            flops=filled.flops,
            moved=filled.moved,
            read=len(prompt),
            written=written,
            wasted=wasted,
            reused=filled.kept,
            calls=filled.passes,
        )
        seconds = time.perf_counter() - began
        spent = AnswerSpent(charge, {"decode": seconds}, first=seconds if written else None)
        return Answer(number, sample, tuple(tokens[:written]), stop, spent)


class _Text:
    """A text that is being filled in.

    values: [L] int64, on the CPU. computed, kept: places that passes computed, and that they read from what was held.
    """

    def __init__(self, denoiser: Denoiser, prompt: list[int], new: int, sampling: Sampling, sample: int) -> None:
        self.of, self.sampling, self.first, self.chance = denoiser, sampling, len(prompt), (sampling.seed, sample)
        self.values = torch.tensor([*prompt, *[HIDDEN] * new])
        self.flops = self.moved = self.passes = self.computed = self.kept = 0
        model = denoiser.model
        self._cache: Cache | None = None if denoiser.cache is None else model.new_cache(1, len(self.values))

    def fill(self) -> "_Text":
        new = len(self.values) - self.first
        block = self.of.config.block or new
        starts = range(self.first, len(self.values), block)
        wanted = min(self.of.config.steps or new, new)
        if wanted < len(starts):
            raise UsageError(
                f"{wanted} steps cannot fill {len(starts)} blocks, each of which takes one: give more steps"
            )
        for number, start in enumerate(starts):
            share = wanted * (number + 1) // len(starts) - wanted * number // len(starts)
            self._block(slice(start, min(start + block, len(self.values))), share)
        return self

    def _block(self, here: slice, steps: int) -> None:
        """Fill in one block in so many steps at most."""
        size = here.stop - here.start
        steps = min(steps, size)
        before = self.values == HIDDEN
        for step in range(steps):
            hidden = self.values == HIDDEN
            count = size // steps + (step < size % steps)
            places = hidden.nonzero()[:, 0]
            places = places[(places >= here.start) & (places < here.stop)]
            coming = None
            if self.of.order.ahead:
                places = self._first_of(self.of.order.scores(torch.empty(0), places, *self.chance), places, count)
                coming = torch.zeros_like(hidden)
                coming[places] = True
            tokens, confidence = self._choose(DenoisingStep(step, hidden, before, coming), places)
            if coming is None:
                scores = self.of.order.scores(confidence, places, *self.chance)
                kept = self._first_of(scores, torch.arange(len(places)), count)
                places, tokens = places[kept], tokens[kept]
            before = hidden
            self.values[places] = tokens

    @staticmethod
    def _first_of(scores: Tensor, places: Tensor, count: int) -> Tensor:
        return places[scores.argsort(descending=True, stable=True)[:count]]

    def _choose(self, step: DenoisingStep, places: Tensor) -> tuple[Tensor, Tensor]:
        """(a token for each of these places [n], its probability), from one pass."""
        reading, at = self._read(step, places)
        logits = reading.head.logits(reading.hidden[0, at.to(reading.hidden.device)]).float().cpu()
        self.flops += reading.cost.flops + reading.head.flops(len(places))
        self.moved += reading.cost.moved
        self.passes += 1
        if self.sampling.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            each = zip(logits, places.tolist(), strict=True)
            tokens = torch.tensor([choose(row, self.sampling, draw(*self.chance, place)) for row, place in each])
        return tokens, logits.double().softmax(-1).gather(-1, tokens[:, None])[:, 0]

    def _read(self, step: DenoisingStep, places: Tensor) -> tuple[Reading, Tensor]:
        """(a pass, where in it these places are)."""
        model, cache = self.of.model, self._cache
        if cache is None or self.of.cache is None:
            self.computed += len(self.values)
            return model.read(Inputs(self.values[None].to(model.device))), places
        due = self.of.cache.due(step).nonzero()[:, 0]
        self.computed += len(due)
        self.kept += len(self.values) - len(due)
        given: Any = (self.values[due][None], due[None])
        reading = model.read(Inputs(*(one.to(model.device) for one in given)), cache)
        return reading, torch.searchsorted(due, places)
