"""The seconds of a block and of the output layer, which together make a step, timed at a run's own shapes.

They are kept in the cache, so that the next run on this machine with these shapes knows them at once. Timing has an allowance, a
share of what the run has.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoestring import atomic
from shoestring.budget.machine import timed
from shoestring.contract.batch import Inputs
from shoestring.errors import ShoestringError
from shoestring.json_files import is_number, read_json
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.plan import rules
from shoestring.train.execution import compiles, cross_entropy, prepare_blocks
from shoestring.train.precision import autocast
from shoestring.train.sections import ExecutionConfig

EACH = 0.3
"""Seconds for which a way of computing is timed."""


class Allowance:
    """Seconds that measuring may take in all, from now on.

    clock: in seconds.
    """

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._until = clock() + seconds

    @classmethod
    def share(cls, seconds: float | None, left: float | None, used: float = 0.0) -> "Allowance":
        """The share for measuring of a run of `seconds`, of which `left` are not spent; None: not limited in time.

        used: of that share, by now.
        """
        if seconds is None or left is None:
            return cls()
        return cls(max(0.0, min(rules.MEASURING_SHARE * seconds - used, left / 2)))

    @property
    def left(self) -> float:
        return self._until - self._clock()


class NoTimeLeft(Exception):
    """The allowance does not reach for a measurement."""


def with_changes(config: ExecutionConfig, **changes: Any) -> ExecutionConfig:
    return replace(config, **changes)


class StepTimings:
    """Seconds by name, measured once on this machine at these shapes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = read_json(path, dict, "an object") or {}
        except ShoestringError:
            known = {}  # damaged: measured again
        self.known: dict[str, float] = {name: value for name, value in known.items() if is_number(value)}

    def get(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self.known:
            self.known[name] = measure()
            atomic.write_text(self._path, json.dumps(self.known, indent=1))
        return self.known[name]


class StepBench:
    """Times one block, and the output layer, at a run's shapes.

    rows: sequences at once.
    allowance: for all that is timed, save where it is compiled: whether to compile is decided before.
    guess: seconds that a first measurement may take.
    frozen_head: whether the matrix of the output layer takes no gradient.

    What is to be timed raises NoTimeLeft where it would, by what others took, take longer than is left.
    """

    def __init__(
        self,
        model: ModelConfig,
        rows: int,
        timings: StepTimings,
        allowance: Allowance | None = None,
        guess: float = 0.0,
        frozen_head: bool = False,
    ) -> None:
        self.model, self.rows, self.timings, self.frozen_head = model, rows, timings, frozen_head
        self.allowance, self._longest = allowance or Allowance(), guess

    @staticmethod
    def name(config: ExecutionConfig) -> str:
        return f"block {config.precision} {config.compile} {config.attention}"

    def _get(self, name: str, measure: Callable[[], float], config: ExecutionConfig) -> float:
        if name in self.timings.known or compiles(config):
            return self.timings.get(name, measure)
        left = self.allowance.left
        if left <= self._longest:
            raise NoTimeLeft
        found = self.timings.get(name, measure)
        if math.isfinite(left):
            self._longest = max(self._longest, left - self.allowance.left)
        return found

    def block(self, config: ExecutionConfig) -> float:
        """Seconds of a block forward and backward at its fastest, compiled before the clock starts; where layers differ,
        the mean."""
        kinds = self.model.kinds()
        if len(kinds) == 1:
            return self._get(self.name(config), lambda: self._block(config), config)
        total = 0.0
        for number, (kind, layers) in enumerate(kinds):
            name = f"{self.name(config)}, kind {number}"
            total += len(layers) * self._get(name, partial(self._block, config, kind), config)
        return total / self.model.layers

    def _block(self, config: ExecutionConfig, kind: ModelConfig | None = None) -> float:
        """Of one layer by itself. kind: its configuration; None: of the first."""
        small = Transformer(replace((kind or self.model.layer(0)).alone(), vocabulary=64)).to(config.device)
        prepare_blocks(small, config)
        tokens = torch.zeros(self.rows, self.model.context, dtype=torch.int64, device=config.device)

        def work() -> None:
            with autocast(config.device, config.precision):
                hidden = small.read(Inputs(tokens)).hidden
            hidden.float().sum().backward()

        return self._timed(work, config)

    def _timed(self, work: Callable[[], None], config: ExecutionConfig) -> float:
        if compiles(config):
            return timed(work, device=config.device, seconds=EACH, least=3, of=min)
        left = self.allowance.left
        return timed(work, device=config.device, seconds=min(EACH, left / 8), least=3, of=min, most=left / 2)

    def step(self, config: ExecutionConfig) -> float:
        """Seconds of forward and backward passes: every block, and the output layer with the fastest of its losses."""
        return self.model.layers * self.block(config) + min(self.losses(config).values())

    def losses(self, config: ExecutionConfig) -> dict[str, float]:
        """The seconds of the output layer by the loss that may be chosen, of those that there is time for."""
        names = [config.loss] if config.loss != "auto" else ["plain", "fused"]
        if config.loss == "auto" and config.compile == "blocks":
            names.append("fused_compiled")
        found = {}
        for name in names:
            try:
                found[name] = self.loss(with_changes(config, loss=name))
            except NoTimeLeft:
                if not found:
                    raise
        return found

    def loss(self, config: ExecutionConfig) -> float:
        """Seconds of the output layer with its loss, forward and backward, at its fastest."""
        name = f"loss {config.precision} {config.loss}{' frozen' if self.frozen_head else ''}"
        return self._get(name, lambda: self._loss(config), with_changes(config, compile="none"))

    def _loss(self, config: ExecutionConfig) -> float:
        shape, loss = (self.rows, self.model.context), cross_entropy(config)
        hidden = torch.randn(*shape, self.model.width, device=config.device, requires_grad=True)
        weight = torch.randn(self.model.vocabulary, self.model.width, device=config.device)
        weight.requires_grad_(not self.frozen_head)
        targets = torch.randint(self.model.vocabulary, shape, device=config.device)

        def work() -> None:
            with autocast(config.device, config.precision):
                value: Tensor = loss(hidden, weight, targets)
            value.backward()

        return self._timed(work, config)
