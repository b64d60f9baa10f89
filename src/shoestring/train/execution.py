"""How the arithmetic is carried out, decided by measuring: precision, compiled blocks, attention, loss.

Each 'auto' of `ExecutionConfig` is settled by timing the alternatives at the run's own shapes: one block forward and
backward, and the output layer with its loss, which together make a step. Compiling costs seconds before it saves any: it
is first tried in a run long enough to earn them back, and chosen where what it saves exceeds what it costs. The timings
are kept in the cache, so that the next run on this machine with these shapes decides at once.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring import __version__, atomic
from shoestring.budget.machine import Machine, timed
from shoestring.config import to_toml
from shoestring.contract.batch import Inputs
from shoestring.errors import ShoestringError
from shoestring.json_files import is_number, read_json
from shoestring.model.chunked import LONGEST
from shoestring.model.config import ModelConfig
from shoestring.model.transformer import Transformer
from shoestring.objective.cross_entropy import CrossEntropy, Fused, plain
from shoestring.train.config import ExecutionConfig
from shoestring.train.precision import autocast

FIRST_TRY = 150.0
"""Seconds of budget from which compiling is tried for the first time. Block and loss took 48 s of two cores to compile,
and saved a third of each step, where this was measured: it is earned back after about two and a half minutes."""

AGAIN = 4.0
"""Seconds that compiling takes once the compiler has its own cache."""


@dataclass(frozen=True)
class Execution:
    """What was decided. config: without any 'auto'. reasons: a line for each decision."""

    config: ExecutionConfig
    reasons: tuple[str, ...]


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
    """Times one block, and the output layer, at a run's shapes. rows: sequences at once."""

    def __init__(self, model: ModelConfig, rows: int, timings: _Timings) -> None:
        self.model, self.rows, self.timings = model, rows, timings

    @staticmethod
    def name(config: ExecutionConfig) -> str:
        return f"block {config.precision} {config.compile} {config.attention}"

    def block(self, config: ExecutionConfig) -> float:
        """Seconds of a block forward and backward at its fastest, compiled before the clock starts."""
        return self.timings.get(self.name(config), lambda: self._block(config))

    def _block(self, config: ExecutionConfig) -> float:
        small = Transformer(replace(self.model, layers=1, vocabulary=64)).to(config.device)
        prepare_blocks(small, config)
        tokens = torch.zeros(self.rows, self.model.context, dtype=torch.int64, device=config.device)

        def work() -> None:
            with autocast(config.device, config.precision):
                hidden = small.read(Inputs(tokens)).hidden
            hidden.float().sum().backward()

        return timed(work, device=config.device, seconds=0.3, least=3, of=min)

    def step(self, config: ExecutionConfig) -> float:
        """Seconds of forward and backward passes: every block, and the output layer with the fastest of its losses."""
        return self.model.layers * self.block(config) + min(self.losses(config).values())

    def losses(self, config: ExecutionConfig) -> dict[str, float]:
        """The seconds of the output layer by the loss that may be chosen."""
        names = [config.loss] if config.loss != "auto" else ["plain", "fused"]
        if config.loss == "auto" and config.compile == "blocks":
            names.append("fused_compiled")
        return {name: self.loss(_with(config, loss=name)) for name in names}

    def loss(self, config: ExecutionConfig) -> float:
        """Seconds of the output layer with its loss, forward and backward, at its fastest."""
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

        return timed(work, device=config.device, seconds=0.3, least=3, of=min)


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
    if "auto" in (config.precision, config.compile):
        config = _settle_blocks(config, bench, machine.best_precision, seconds, reasons)
    if config.attention == "auto":
        config = _with(config, attention=_attentions(config, model)[-1] if config.compile == "blocks" else "flash")
    if config.loss == "auto":
        config = _settle_loss(config, bench, reasons)
    return Execution(config, tuple(reasons))


def _with(config: ExecutionConfig, **changes: Any) -> ExecutionConfig:
    return replace(config, **changes)


def _attentions(config: ExecutionConfig, model: ModelConfig) -> tuple[str, ...]:
    """The ways to try. Written out, attention pays on a CPU only, at lengths whose scores stay in the cache: much once a
    compiler fuses it, and in bfloat16 without one too, as torch's flash kernel is slow there in its backward pass."""
    if config.attention != "auto":
        return (config.attention,)
    return ("flash", "chunked") if config.device == "cpu" and model.context <= LONGEST else ("flash",)


def _settle_blocks(
    config: ExecutionConfig, bench: _Bench, best_precision: str, seconds: float | None, reasons: list[str]
) -> ExecutionConfig:
    """Precision, attention and compiling together, by a whole step: each changes what the others are worth.

    best_precision: of the device's large matrix products, and the one that is tried compiled.
    """
    precisions = ("float32", "bfloat16") if config.precision == "auto" else (config.precision,)
    ways = []
    if config.compile != "blocks":
        attentions = _attentions(config, bench.model)
        ways += [_with(config, precision=p, compile="none", attention=a) for p in precisions for a in attentions]
    compiled = _with(config, compile="blocks", precision=best_precision if len(precisions) > 1 else config.precision)
    compiled = _with(compiled, attention=_attentions(compiled, bench.model)[-1])
    times = {way: bench.step(way) for way in ways}
    if config.compile != "none" and _worth_trying(config, compiled, bench, seconds, reasons):
        try:
            times[compiled] = bench.step(compiled)
        except (RuntimeError, OSError) as error:  # torch wraps a missing or failing C++ compiler in RuntimeError
            if config.compile == "blocks":
                raise
            reason = str(error).strip().splitlines()[0][:120]
            reasons.append(f"blocks NOT compiled, so this run is slower: the compiler failed: {reason}")
    chosen = min(times, key=lambda way: times[way])
    if chosen == compiled and ways and seconds is not None:
        plainly = min(ways, key=lambda way: times[way])
        if (1 - times[compiled] / times[plainly]) * seconds < AGAIN:
            chosen = plainly
    measured = ", ".join(
        f"{t * 1e3:.1f} ms in {w.precision} {w.attention}{' compiled' * (w.compile == 'blocks')}"
        for w, t in times.items()
    )
    words = f"{chosen.precision}, {chosen.attention} attention, blocks {'' if chosen.compile == 'blocks' else 'not '}compiled"
    reasons.append(f"{words}: the passes of a step take {measured}")
    return chosen


def _worth_trying(
    config: ExecutionConfig, compiled: ExecutionConfig, bench: _Bench, seconds: float | None, reasons: list[str]
) -> bool:
    """Whether to time the compiled block: it is asked for, or known already, or the budget is long enough to try."""
    if config.compile == "blocks" or bench.name(compiled) in bench.timings.known or seconds is None:
        return True
    if seconds < FIRST_TRY:
        reasons.append(
            f"compiling not tried: the first time takes up to a minute, and the budget is under {FIRST_TRY:.0f} s; "
            "once run with --execution.compile blocks, these shapes compile in seconds"
        )
    return seconds >= FIRST_TRY


def _settle_loss(config: ExecutionConfig, bench: _Bench, reasons: list[str]) -> ExecutionConfig:
    times = bench.losses(config)
    fastest = min(times, key=lambda name: times[name])
    reasons.append(f"loss {fastest}: " + ", ".join(f"{name} takes {t * 1e3:.1f} ms" for name, t in times.items()))
    return _with(config, loss=fastest)
