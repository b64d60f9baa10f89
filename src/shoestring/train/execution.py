"""How the arithmetic is carried out, decided by measuring: precision, compiled blocks, attention, loss.

Each 'auto' of `ExecutionConfig` is settled by timing the alternatives at the run's own shapes: one block forward and
backward, and the output layer with its loss. Compiling costs seconds before it saves any: it is first tried in a run
long enough to earn them back, and chosen where what it saves exceeds what it costs. The timings are kept in the cache,
so that the next run on this machine with these shapes decides at once.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring import __version__, atomic
from shoestring.budget.machine import Machine, timed
from shoestring.config import to_toml
from shoestring.model.chunked import LONGEST
from shoestring.model.config import ModelConfig
from shoestring.objective.cross_entropy import CrossEntropy, Fused, plain
from shoestring.train.config import ExecutionConfig
from shoestring.train.step import autocast

FIRST_TRY = 90.0
"""Seconds of budget from which compiling is tried for the first time: a cold compile of a block takes 10 to 20."""

AGAIN = 4.0
"""Seconds that compiling takes once the compiler has its own cache."""


@dataclass(frozen=True)
class Execution:
    """What was decided. config: without any 'auto'. reasons: a line for each decision."""

    config: ExecutionConfig
    reasons: tuple[str, ...]


def cross_entropy(config: ExecutionConfig) -> CrossEntropy:
    """The loss of the output layer that `config.loss` names."""
    ways: dict[str, CrossEntropy] = {"plain": plain, "fused": Fused(), "fused_compiled": Fused(compiled=True)}
    return ways[config.loss]


def prepare_blocks(model: nn.Module, config: ExecutionConfig) -> None:
    """Set a model's blocks to compute as `config` says. Each block is compiled as a region of its own: the blocks are
    alike, so the compiler works once for all of them."""
    for block in model.blocks:  # type: ignore[union-attr]
        if config.attention == "chunked" and hasattr(block.token_mixer, "chunked"):
            block.token_mixer.chunked = True
        if config.compile == "blocks":
            block.compile(dynamic=False)


class _Timings:
    """Seconds by name, measured once on this machine at these shapes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.known: dict[str, float] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.known = {}  # nothing measured yet

    def get(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self.known:
            self.known[name] = measure()
            atomic.write_text(self._path, json.dumps(self.known, indent=1))
        return self.known[name]


class _Bench:
    """Times one block, and the output layer, at a run's shapes. rows: sequences at once."""

    def __init__(self, model: ModelConfig, rows: int, timings: _Timings) -> None:
        self.model, self.rows, self.timings = model, rows, timings

    def block(self, config: ExecutionConfig) -> float:
        """Median seconds of a block forward and backward; compiling comes before and is timed apart."""
        name = f"block {config.precision} {config.compile} {config.attention}"
        return self.timings.get(name, lambda: self._block(config, name))

    def _block(self, config: ExecutionConfig, name: str) -> float:
        small = replace(self.model, layers=1, vocabulary=64).build().to(config.device)
        prepare_blocks(small, config)
        tokens = torch.zeros(self.rows, self.model.context, dtype=torch.int64, device=config.device)

        def work() -> None:
            with autocast(config.device, config.precision):
                hidden = small.hidden(tokens)
            hidden.float().sum().backward()

        start = time.perf_counter()
        work()
        self.timings.known[f"first {name}"] = time.perf_counter() - start
        return timed(work, device=config.device, seconds=0.3, least=2)

    def loss(self, config: ExecutionConfig) -> float:
        """Median seconds of the output layer with its loss, forward and backward."""
        return self.timings.get(f"loss {config.precision} {config.loss}", lambda: self._loss(config))

    def _loss(self, config: ExecutionConfig) -> float:
        shape, loss = (self.rows, self.model.context), cross_entropy(config)
        hidden = torch.randn(*shape, self.model.width, device=config.device, requires_grad=True)
        weight = torch.randn(self.model.vocabulary, self.model.width, device=config.device, requires_grad=True)
        targets = torch.randint(self.model.vocabulary, shape, device=config.device)

        def work() -> None:
            with autocast(config.device, config.precision):
                value: Tensor = loss(hidden, weight, targets)
            value.backward()

        return timed(work, device=config.device, seconds=0.3, least=2)


def settle(
    config: ExecutionConfig,
    model: ModelConfig,
    *,
    rows: int,
    seconds: float | None,
    machine: Machine,
    cache: Path,
    say: Callable[[str], None],
) -> Execution:
    """Decide every 'auto'. rows: sequences at once. seconds: what the run has (None: not limited in time)."""
    config = _with(config, device=machine.device if config.device == "auto" else config.device)
    said = [__version__, torch.__version__, machine.name, torch.get_num_threads(), config.device, to_toml(model), rows]
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:20]
    bench = _Bench(model, rows, _Timings(cache / f"timings-{key}.json"))
    if not bench.timings.known and "auto" in (config.precision, config.compile, config.loss):
        say("measuring which arithmetic pays at these shapes")
    reasons: list[str] = []
    if config.precision == "auto":
        config = _settle_precision(config, bench, reasons)
    if config.compile == "auto":
        config = _settle_compile(config, bench, seconds, reasons)
    if config.attention == "auto":
        config = _with(config, attention=_attention(config, model))
    if config.loss == "auto":
        config = _settle_loss(config, bench, reasons)
    return Execution(config, tuple(reasons))


def _with(config: ExecutionConfig, **changes: Any) -> ExecutionConfig:
    return replace(config, **changes)


def _attention(config: ExecutionConfig, model: ModelConfig) -> str:
    """Written-out attention pays only where a compiler fuses it, on a CPU, at lengths whose scores stay in the cache."""
    pays = config.compile == "blocks" and config.device == "cpu" and model.context <= LONGEST
    return "chunked" if pays else "flash"


def _settle_precision(config: ExecutionConfig, bench: _Bench, reasons: list[str]) -> ExecutionConfig:
    ways = [_with(config, precision=p, compile="none", attention="flash") for p in ("float32", "bfloat16")]
    times = {way.precision: bench.block(way) for way in ways}
    fastest = min(times, key=lambda precision: times[precision])
    timed_as = ", ".join(f"{t * 1e3:.1f} ms in {p}" for p, t in times.items())
    reasons.append(f"precision {fastest}: a block takes {timed_as}")
    return _with(config, precision=fastest)


def _settle_compile(
    config: ExecutionConfig, bench: _Bench, seconds: float | None, reasons: list[str]
) -> ExecutionConfig:
    plainly = _with(config, compile="none", attention="flash" if config.attention == "auto" else config.attention)
    compiled = _with(config, compile="blocks")
    if compiled.attention == "auto":
        compiled = _with(compiled, attention=_attention(compiled, bench.model))
    name = f"block {compiled.precision} blocks {compiled.attention}"
    if name not in bench.timings.known and seconds is not None and seconds < FIRST_TRY:
        reasons.append(f"blocks not compiled: trying that takes 10 to 20 s, and the budget is under {FIRST_TRY:.0f} s")
        return plainly
    try:
        fast = bench.block(compiled)
    except (RuntimeError, OSError) as error:  # torch wraps a missing or failing C++ compiler in RuntimeError
        reason = str(error).strip().splitlines()[0][:120]
        reasons.append(f"blocks NOT compiled, so this run is slower: the compiler failed: {reason}")
        return plainly
    slow, first = bench.block(plainly), bench.timings.known.get(f"first {name}", 0.0)
    saved = 1 - fast / slow
    chosen = saved > 0.03 and (seconds is None or saved * seconds > AGAIN)
    reasons.append(
        f"blocks {'compiled' if chosen else 'not compiled'}: a block takes {fast * 1e3:.1f} ms compiled with "
        f"{compiled.attention} attention, {slow * 1e3:.1f} ms not; compiling took {first:.1f} s the first time"
    )
    return compiled if chosen else plainly


def _settle_loss(config: ExecutionConfig, bench: _Bench, reasons: list[str]) -> ExecutionConfig:
    names = ["plain", "fused"] + (["fused_compiled"] if config.compile == "blocks" else [])
    times = {name: bench.loss(_with(config, loss=name)) for name in names}
    fastest = min(times, key=lambda name: times[name])
    reasons.append(f"loss {fastest}: " + ", ".join(f"{name} takes {t * 1e3:.1f} ms" for name, t in times.items()))
    return _with(config, loss=fastest)
