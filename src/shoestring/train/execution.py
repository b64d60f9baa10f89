"""How the arithmetic is carried out, decided by measuring: precision, compiled blocks, attention, loss.

Each 'auto' of `ExecutionConfig` is settled by timing the alternatives at the run's own shapes: one block forward and
backward, and the output layer with its loss, which together make a step. Compiling costs seconds before it saves any: it
is first tried in a run long enough to earn them back, and chosen where what it saves exceeds what it costs. The timings
are kept in the cache, so that the next run on this machine with these shapes decides at once. Measuring has an allowance, a
share of what the run has: what it does not reach is not tried, and that is said.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring import __version__, atomic
from shoestring.budget import busy_waiting
from shoestring.budget.machine import Machine, timed
from shoestring.config import to_toml
from shoestring.contract.batch import Inputs
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import is_number, read_json
from shoestring.model.chunked import LONGEST
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.objective.cross_entropy import CrossEntropy, Fused, plain
from shoestring.plan import rules
from shoestring.plan.pace import seconds_per_token
from shoestring.plan.sizes import flops_per_token
from shoestring.train.config import ExecutionConfig
from shoestring.train.precision import autocast

log = logging.getLogger(__name__)

FIRST_TRY = 150.0
"""Seconds of budget from which compiling is tried for the first time. Block and loss took 48 s of two cores to compile,
and saved a third of each step, where this was measured: it is earned back after about two and a half minutes."""

AGAIN = 4.0
"""Seconds that compiling takes once the compiler has its own cache."""

BESIDE_OTHERS = 3.0
"""How many times longer compiling takes, at most, beside other processes: the budget for a first try is to be as much longer."""

EACH = 0.3
"""Seconds for which a way of computing is timed."""


@dataclass(frozen=True)
class Execution:
    """What was decided.

    config: without any 'auto'.
    reasons: a line for each decision.
    """

    config: ExecutionConfig
    reasons: tuple[str, ...]


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


class _NoTimeLeft(Exception):
    """The allowance does not reach for a measurement."""


def require_device(config: ExecutionConfig) -> None:
    """Raises: UsageError where the device that is asked for is not here."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "execution.device = cuda: torch finds no GPU here; leave it out, or give --execution.device cpu"
        )


def compiles(config: ExecutionConfig) -> bool:
    """Whether the first step has the compiler work."""
    return config.compile == "blocks" or config.loss == "fused_compiled"


def preloaded(configs: Iterable[ExecutionConfig]) -> list[str]:
    """Modules that a server from which runs are forked is to import first, as all of them are likely to: the compiler."""
    compiled = any(
        config.compile in ("auto", "blocks") or config.loss in ("auto", "fused_compiled") for config in configs
    )
    return ["torch._dynamo"] if compiled else []


def keep_compiled_code(cache: Path) -> None:
    """Have the compiler keep its results beside the timings that count on them, and not where a reboot clears them. A
    place that the user chose (TORCHINDUCTOR_CACHE_DIR) stands."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))


def cross_entropy(config: ExecutionConfig) -> CrossEntropy:
    """The loss of the output layer that `config.loss` names."""
    # made only where it is asked for: the compiler alone takes seconds to import
    ways: dict[str, Callable[[], CrossEntropy]] = {
        "plain": lambda: plain,
        "fused": Fused,
        "fused_compiled": lambda: Fused(compiled=True),
    }
    return ways[config.loss]()


def prepare_blocks(model: nn.Module, config: ExecutionConfig) -> None:
    """Set a model's blocks to compute as `config` says. Each block is compiled as a region of its own: the blocks are
    alike, so the compiler works once for all of them."""
    if not isinstance(model, Transformer):
        return  # of a wrapped model every part is its makers' own
    spans = [] if model.stack is None else model.stack.spans
    uncompiled = {layer for span, layers in spans if not span.compiles for layer in layers}
    for number, block in enumerate(model.blocks):
        if config.attention == "chunked" and hasattr(block.token_mixer, "chunked"):
            block.token_mixer.chunked = True
        if config.compile == "blocks" and block.compiles and number not in uncompiled:
            block.compile(dynamic=False)


class _Timings:
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


class _Bench:
    """Times one block, and the output layer, at a run's shapes.

    rows: sequences at once.
    allowance: for all that is timed, save where it is compiled: whether to compile is decided before.
    guess: seconds that a first measurement may take.

    What is to be timed raises _NoTimeLeft where it would, by what others took, take longer than is left.
    """

    def __init__(
        self, model: ModelConfig, rows: int, timings: _Timings, allowance: Allowance | None = None, guess: float = 0.0
    ) -> None:
        self.model, self.rows, self.timings = model, rows, timings
        self.allowance, self._longest = allowance or Allowance(), guess

    @staticmethod
    def name(config: ExecutionConfig) -> str:
        return f"block {config.precision} {config.compile} {config.attention}"

    def _get(self, name: str, measure: Callable[[], float], config: ExecutionConfig) -> float:
        if name in self.timings.known or compiles(config):
            return self.timings.get(name, measure)
        left = self.allowance.left
        if left <= self._longest:
            raise _NoTimeLeft
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
        small = Transformer(replace(kind or self.model.layer(0), vocabulary=64)).to(config.device)
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
                found[name] = self.loss(_with(config, loss=name))
            except _NoTimeLeft:
                if not found:
                    raise
        return found

    def loss(self, config: ExecutionConfig) -> float:
        """Seconds of the output layer with its loss, forward and backward, at its fastest."""
        name = f"loss {config.precision} {config.loss}"
        return self._get(name, lambda: self._loss(config), _with(config, compile="none"))

    def _loss(self, config: ExecutionConfig) -> float:
        shape, loss = (self.rows, self.model.context), cross_entropy(config)
        hidden = torch.randn(*shape, self.model.width, device=config.device, requires_grad=True)
        weight = torch.randn(self.model.vocabulary, self.model.width, device=config.device, requires_grad=True)
        targets = torch.randint(self.model.vocabulary, shape, device=config.device)

        def work() -> None:
            with autocast(config.device, config.precision):
                value: Tensor = loss(hidden, weight, targets)
            value.backward()

        return self._timed(work, config)


def settle(
    config: ExecutionConfig,
    model: ModelConfig,
    *,
    rows: int,
    seconds: float | None,
    machine: Machine,
    cache: Path,
    allowance: Allowance | None = None,
    clock: Callable[[str], AbstractContextManager[None]] = lambda cause: nullcontext(),
    unlike: str = "",
) -> Execution:
    """Decide every 'auto'.

    rows: sequences at once.
    seconds: what the run has (None: not limited in time).
    allowance: for measuring (None: as long as it takes).
    clock: puts what compiling takes on the ledger.
    unlike: what its parts are, where they are not those that are timed here: 'wrapped' or 'packed'.
    """
    config = _with(config, device=machine.device if config.device == "auto" else config.device)
    if unlike:
        return _as_it_is(config, machine, unlike)
    model = replace(model, base="", digest="")  # a base computes as any model of its shape
    said = [__version__, torch.__version__, machine.name, torch.get_num_threads(), config.device, to_toml(model), rows]
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:20]
    allowance = allowance or Allowance()
    # the first measurement builds a block, warms up and times three passes; the machine may be busier than at its probe
    block = model.layer(0)
    rate = machine.matmul[machine.best_precision]
    guess = 8 * rows * model.context * seconds_per_token(flops_per_token(block), model.width, rate)
    bench = _Bench(model, rows, _Timings(cache / f"timings-{key}.json"), allowance, guess)
    if not bench.timings.known and "auto" in (config.precision, config.compile, config.loss):
        log.info("measuring which arithmetic pays at these shapes")
    reasons: list[str] = []
    if "auto" in (config.precision, config.compile):
        config = _settle_blocks(config, bench, machine.best_precision, seconds, reasons, clock)
    if config.attention == "auto":
        config = _with(config, attention=_attentions(config, model)[-1] if config.compile == "blocks" else "flash")
    if config.loss == "auto":
        config = _settle_loss(config, bench, reasons)
    return Execution(config, tuple(reasons))


def _as_it_is(config: ExecutionConfig, machine: Machine, unlike: str) -> Execution:
    """What is decided for a wrapped or a packed model, by the machine alone. Raises: UsageError for what such a model has not."""
    for key, only in (("compile", "blocks"), ("attention", "chunked")):
        if getattr(config, key) == only:
            raise UsageError(
                f"execution.{key} = {only} is for native models in plain numbers: this one is {unlike}, so leave it out"
            )
    best = "float32" if unlike == "packed" else machine.best_precision  # as the products with packed matrices are
    precision = best if config.precision == "auto" else config.precision
    loss = "plain" if config.loss == "auto" else config.loss
    made = _with(config, precision=precision, compile="none", attention="flash", loss=loss)
    parts = "its matrices stay packed" if unlike == "packed" else "the model's parts are its makers' own"
    return Execution(made, (f"{precision}, not timed: {parts}, and computed as they are",))


def _with(config: ExecutionConfig, **changes: Any) -> ExecutionConfig:
    return replace(config, **changes)


def _attentions(config: ExecutionConfig, model: ModelConfig) -> tuple[str, ...]:
    """The ways to try. Written out, attention pays on a CPU only, at lengths whose scores stay in the cache: much once a
    compiler fuses it, and in bfloat16 without one too, as torch's flash kernel is slow there in its backward pass."""
    if config.attention != "auto":
        return (config.attention,)
    return ("flash", "chunked") if config.device == "cpu" and model.context <= LONGEST else ("flash",)


def _settle_blocks(
    config: ExecutionConfig,
    bench: _Bench,
    best_precision: str,
    seconds: float | None,
    reasons: list[str],
    clock: Callable[[str], AbstractContextManager[None]],
) -> ExecutionConfig:
    """Precision, attention and compiling together, by a whole step: each changes what the others are worth.

    best_precision: of the device's large matrix products, and the one that is tried compiled.
    """
    precisions = ("float32", "bfloat16") if config.precision == "auto" else (config.precision,)
    ways = []
    if config.compile != "blocks":
        attentions = _attentions(config, bench.model)
        ways += [_with(config, precision=p, compile="none", attention=a) for p in precisions for a in attentions]
        # what pays most often first, for where there is no time to try all: as `_attentions` says
        ways.sort(
            key=lambda w: (w.precision != best_precision, (w.attention == "flash") == (w.precision == "bfloat16"))
        )
    compiled = _with(config, compile="blocks", precision=best_precision if len(precisions) > 1 else config.precision)
    compiled = _with(compiled, attention=_attentions(compiled, bench.model)[-1])
    times, untried = {}, []
    for way in ways:
        try:
            times[way] = bench.step(way)
        except _NoTimeLeft:
            untried.append(way)
    if config.compile != "none" and _worth_trying(config, compiled, bench, seconds, reasons):
        try:
            with clock("compile"):
                times[compiled] = bench.step(compiled)
        except _NoTimeLeft:
            untried.append(compiled)
        except (RuntimeError, OSError) as error:  # torch wraps a missing or failing C++ compiler in RuntimeError
            if config.compile == "blocks":
                raise
            reason = str(error).strip().splitlines()[0][:120]
            reasons.append(f"blocks NOT compiled, so this run is slower: the compiler failed: {reason}")
    if not times:
        chosen = ways[0] if ways else compiled
        blocks = "compiled" if chosen == compiled else "not compiled"
        reasons.append(
            f"{chosen.precision}, {chosen.attention} attention, blocks {blocks}: taken as it most often pays, and NOT "
            f"measured, as the budget allows {bench.allowance.seconds:.1f} s of measuring"
        )
        return chosen
    chosen = min(times, key=lambda way: times[way])
    tried = [way for way in ways if way in times]
    if chosen == compiled and tried and seconds is not None:
        plainly = min(tried, key=lambda way: times[way])
        if (1 - times[compiled] / times[plainly]) * seconds < AGAIN:
            chosen = plainly
    measured = ", ".join(
        f"{t * 1e3:.1f} ms in {w.precision} {w.attention}{' compiled' * (w.compile == 'blocks')}"
        for w, t in times.items()
    )
    words = f"{chosen.precision}, {chosen.attention} attention, blocks {'' if chosen.compile == 'blocks' else 'not '}compiled"
    reasons.append(f"{words}: the passes of a step take {measured}{_left_out(untried, bench.allowance)}")
    return chosen


def _left_out(untried: list[ExecutionConfig], allowance: Allowance) -> str:
    if not untried:
        return ""
    names = ", ".join(f"{w.precision} {w.attention}{' compiled' * (w.compile == 'blocks')}" for w in untried)
    return f"; not tried within {allowance.seconds:.1f} s of measuring: {names}"


def _worth_trying(
    config: ExecutionConfig, compiled: ExecutionConfig, bench: _Bench, seconds: float | None, reasons: list[str]
) -> bool:
    """Whether to time the compiled block: it is asked for, or known already, or the budget is long enough to try."""
    if config.compile == "blocks" or bench.name(compiled) in bench.timings.known or seconds is None:
        return True
    least = FIRST_TRY * (BESIDE_OTHERS if busy_waiting.crowded() else 1.0)
    if seconds < least:
        beside = " beside other processes" if least > FIRST_TRY else ""
        reasons.append(
            f"compiling not tried: the first time takes up to a minute{' or three' * bool(beside)}{beside}, and the run is to "
            f"take under {least:.0f} s; once run with --execution.compile blocks, these shapes compile in seconds"
        )
    return seconds >= least


def _settle_loss(config: ExecutionConfig, bench: _Bench, reasons: list[str]) -> ExecutionConfig:
    try:
        times = bench.losses(config)
    except _NoTimeLeft:
        reasons.append("loss plain: NOT measured, for want of time")
        return _with(config, loss="plain")
    fastest = min(times, key=lambda name: times[name])
    reasons.append(f"loss {fastest}: " + ", ".join(f"{name} takes {t * 1e3:.1f} ms" for name, t in times.items()))
    return _with(config, loss=fastest)
