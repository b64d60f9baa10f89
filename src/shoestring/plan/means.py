"""What a budget buys of a model of some size: tokens, and which resource ends the run."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shoestring.budget.budget import Budget
from shoestring.errors import UsageError
from shoestring.model.config import ModelConfig
from shoestring.plan import rules
from shoestring.plan.pace import Pace, Paces
from shoestring.plan.search import Option
from shoestring.plan.sizes import flops_per_token, forward_flops_per_token, parameters


@dataclass(frozen=True)
class PlannedSize:
    """What a budget buys of a model.

    tokens: to train on. heldout: tokens of an evaluation. beside: seconds that go on anything but steps, by what.
    trained: parameters that are trained, None: all. sent: bytes that all workers send.
    """

    model: ModelConfig
    parameters: int
    flops_per_token: float
    pace: Pace
    tokens: float
    heldout: int
    beside: dict[str, float]
    trained: int | None = None
    sent: float = 0.0

    def option(self, binding: str, memory: float, spent: float) -> Option:
        """As a search takes it. memory: bytes. spent: seconds before."""
        return Option(
            name=f"{self.model.layers} layers of {self.model.width}",
            parameters=self.parameters,
            tokens=self.tokens,
            seconds=spent + sum(self.beside.values()) + self.tokens * self.pace.per_token,
            flops=self.tokens * self.flops_per_token,
            memory=memory,
            sent=self.sent,
            binding=binding,
        )


@dataclass(frozen=True)
class Exchanged:
    """What workers exchange. every: steps from one round to the next. bits: of a value. workers: how many, each of which may be
    several processes."""

    every: int
    bits: float
    workers: int

    def bytes_of_round(self, count: int) -> float:
        """That all workers together send: parts and averages of `count` values, as `sync/exchange.py` has them."""
        return 2 * (self.workers - 1) * count * self.bits / 8


@dataclass(frozen=True)
class Means:
    """What a plan has to divide. seconds_spent: of a budget in seconds, by now. heldout: tokens held out, None where not known.
    fixed: the [train] section as given. adapters: whether these alone are trained. exchanged: what workers send. served: tokens
    that the model is to read and write in its life, which the budget pays for too. batch: the sequences of a step, by tokens and
    model."""

    budget: Budget
    paces: Paces
    seconds_spent: float
    heldout: int | None
    fixed: Mapping[str, Any]
    adapters: bool = False
    exchanged: Exchanged | None = None
    served: float = 0.0
    batch: Callable[[float, ModelConfig], int] = lambda tokens, model: 1

    def size(self, model: ModelConfig) -> tuple[PlannedSize, str]:
        """(what the budget buys of this model, the resource that binds)."""
        count, each = parameters(model), flops_per_token(model)
        pace, budget = self.paces.of(model, each), self.budget
        bought: dict[str, float] = {}
        if budget.flops is not None:
            forward = forward_flops_per_token(model) if self.served else 0.0
            bought["flops"] = max(budget.flops - self.served * forward, 0.0) / each
        if budget.tokens is not None:
            bought["tokens"] = budget.tokens
        seconds = None if budget.seconds is None else budget.seconds - self.seconds_spent
        trained = count // rules.ADAPTED if self.adapters else None
        round_bytes = 0.0
        if self.exchanged is not None:
            round_bytes = self.exchanged.bytes_of_round(trained or count)
        if budget.bytes is not None and self.exchanged is not None and round_bytes:
            bought["bytes"] = self._for_bytes(budget.bytes / round_bytes * self.exchanged.every, model)
        if seconds is not None:
            bought["seconds"] = seconds / pace.per_token
        if not bought:
            raise UsageError(f"a budget of {budget} says nothing about how long to train: add seconds, FLOPs or tokens")
        heldout = self._heldout(min(bought.values()), pace, seconds)
        beside = self._beside(count if trained is None else trained, pace, heldout, seconds)
        if self.served and seconds is not None:
            beside["serving"] = self.served * pace.forward_share * pace.per_token
        if seconds is not None:
            bought["seconds"] = max(seconds - sum(beside.values()), 0.0) / pace.per_token
        binding = min(bought, key=lambda resource: bought[resource])
        tokens, sent = bought[binding], 0.0
        if round_bytes and self.exchanged is not None:
            steps = tokens / (self.batch(tokens, model) * model.context)
            sent = steps / self.exchanged.every * round_bytes
        return PlannedSize(model, count, each, pace, tokens, heldout, beside, trained, sent), binding

    def _for_bytes(self, steps: float, model: ModelConfig) -> float:
        """The tokens of so many steps, whose batch grows with the tokens."""
        tokens = steps * model.context
        for _ in range(30):
            tokens = steps * self.batch(tokens, model) * model.context
        return tokens

    def _heldout(self, tokens: float, pace: Pace, seconds: float | None) -> int:
        """Tokens of an evaluation: a hundredth of the time that training on `tokens` takes; enough for a loss to be told by,
        but not more than there is time for."""
        wanted = max(8192, min(65536, int(0.012 * tokens * 3 / 1024) * 1024))
        if seconds is None:
            return wanted
        most = rules.EVALUATING * max(seconds, 0.0) / (pace.forward_share * pace.per_token)
        return max(2048, min(wanted, int(most / 1024) * 1024))

    def _beside(self, count: int, pace: Pace, heldout: int, seconds: float | None) -> dict[str, float]:
        """Seconds that go on anything but steps."""
        heldout = int(self.fixed.get("heldout_tokens", heldout))
        if self.heldout is not None:
            heldout = min(heldout, self.heldout)
        evaluation = heldout * pace.forward_share * pace.per_token
        often = math.ceil(1 / float(self.fixed.get("evaluate_every", 0.25)) - 1e-9)
        between = max(often - 1, 0) * evaluation
        if seconds is not None:  # those that take too much are skipped, and steps come between the others
            between = min(between, seconds / 2) if evaluation <= rules.EVALUATING * seconds else 0.0
        saving = rules.saving_seconds(4 * count)
        on_the_way = (
            0.0
            if seconds is None
            else seconds / float(self.fixed.get("checkpoint_every", rules.checkpoint_every(4 * count)))
        )
        return {
            "starting": pace.starting,
            "measuring": pace.measuring,
            "evaluating": between + evaluation,
            "saving": saving * (1 + int(on_the_way)),
            "a sample": rules.sampling_seconds(int(self.fixed.get("sample_tokens", 160))),
        }
