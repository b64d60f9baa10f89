"""How the arithmetic is carried out, decided by measuring: precision, compiled blocks, fused loss.

Each 'auto' of `ExecutionConfig` is settled by timing the alternatives at the run's own shapes: one block forward and
backward, and the output layer with its loss. Compiling costs seconds before it saves any, so it is only tried where the
budget is long enough, and the time it took is part of the decision. Decisions are kept in the cache: the next run on
this machine with these shapes reads them.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from shoestring import __version__, atomic
from shoestring.budget.machine import Machine, timed
from shoestring.config import to_toml
from shoestring.model.config import ModelConfig
from shoestring.objective.cross_entropy import CrossEntropy, Fused, plain
from shoestring.train.config import ExecutionConfig
from shoestring.train.step import autocast

COMPILE_WORTH_TRYING = 45.0
"""Seconds of budget below which compiling is not tried: a cold compile of a block takes 10 to 30."""


@dataclass(frozen=True)
class Execution:
    """What was decided. config: without any 'auto'. reasons: a line for each decision."""

    config: ExecutionConfig
    reasons: tuple[str, ...]


def cross_entropy(config: ExecutionConfig) -> CrossEntropy:
    """The loss of the output layer that `config.loss` names."""
    ways: dict[str, CrossEntropy] = {"plain": plain, "fused": Fused(), "fused_compiled": Fused(compiled=True)}
    return ways[config.loss]


def compile_blocks(model: nn.Module) -> None:
    """Compile each block as a region of its own: the blocks are alike, so the compiler works once for all of them."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.compile(dynamic=False)


def _block_seconds(model: ModelConfig, rows: int, device: str, precision: str, compiled: bool) -> tuple[float, float]:
    """(seconds of the first call, median seconds of the later ones) of one block forward and backward on `rows`."""
    small = replace(model, layers=1, vocabulary=64).build().to(device)
    if compiled:
        compile_blocks(small)
    tokens = torch.zeros(rows, model.context, dtype=torch.int64, device=device)

    def work() -> None:
        with autocast(device, precision):
            hidden = small.hidden(tokens)
        hidden.float().sum().backward()

    start = time.perf_counter()
    work()
    first = time.perf_counter() - start
    return first, timed(work, device=device, seconds=0.3, least=2)


def _loss_seconds(model: ModelConfig, rows: int, device: str, precision: str, loss: CrossEntropy) -> float:
    hidden = torch.randn(rows, model.context, model.width, device=device, requires_grad=True)
    weight = torch.randn(model.vocabulary, model.width, device=device, requires_grad=True)
    targets = torch.randint(model.vocabulary, (rows, model.context), device=device)

    def work() -> None:
        with autocast(device, precision):
            value: Tensor = loss(hidden, weight, targets)
        value.backward()

    return timed(work, device=device, seconds=0.3, least=2)


def _key(config: ExecutionConfig, model: ModelConfig, rows: int, machine: Machine, tried: bool) -> str:
    said = [
        __version__,
        torch.__version__,
        machine.name,
        torch.get_num_threads(),
        asdict(config),
        to_toml(model),
        rows,
        tried,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:20]


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
    device = machine.device if config.device == "auto" else config.device
    worth_trying = seconds is None or seconds >= COMPILE_WORTH_TRYING
    config = replace(config, device=device)  # type: ignore[arg-type]
    path = cache / f"execution-{_key(config, model, rows, machine, worth_trying)}.json"
    try:
        known = json.loads(path.read_text())
        return Execution(ExecutionConfig(**known["config"]), (*known["reasons"], "(measured earlier on this machine)"))
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not decided yet on this machine
    if "auto" in (config.precision, config.compile, config.loss):
        say("measuring which arithmetic pays at these shapes")
    reasons: list[str] = []
    eager: dict[str, float] = {}
    if config.precision == "auto":
        eager = {p: _block_seconds(model, rows, device, p, False)[1] for p in ("float32", "bfloat16")}
        fastest = min(eager, key=lambda p: eager[p])
        reasons.append(
            f"precision {fastest}: a block takes {eager['bfloat16'] * 1e3:.1f} ms in bfloat16, {eager['float32'] * 1e3:.1f} in float32"
        )
        config = replace(config, precision=fastest)  # type: ignore[arg-type]
    if config.compile == "auto":
        config = _settle_compile(config, model, rows, worth_trying, eager, reasons)
    if config.loss == "auto":
        config = _settle_loss(config, model, rows, reasons)
    if reasons:
        atomic.write_text(path, json.dumps({"config": asdict(config), "reasons": reasons}))
    return Execution(config, tuple(reasons))


def _settle_compile(
    config: ExecutionConfig, model: ModelConfig, rows: int, worth: bool, eager: dict[str, float], reasons: list[str]
) -> ExecutionConfig:
    if not worth:
        reasons.append(f"blocks not compiled: a budget under {COMPILE_WORTH_TRYING:.0f} s would go into the compiler")
        return replace(config, compile="none")
    plainly = eager.get(config.precision) or _block_seconds(model, rows, config.device, config.precision, False)[1]
    try:
        first, compiled = _block_seconds(model, rows, config.device, config.precision, True)
    except (RuntimeError, OSError) as error:  # torch wraps a missing or failing C++ compiler in RuntimeError
        reason = str(error).strip().splitlines()[0][:120]
        reasons.append(f"blocks NOT compiled, so this run is slower: the compiler failed: {reason}")
        return replace(config, compile="none")
    better = compiled < 0.95 * plainly
    reasons.append(
        f"blocks {'compiled' if better else 'not compiled'}: a block takes {compiled * 1e3:.1f} ms compiled, "
        f"{plainly * 1e3:.1f} not; compiling took {first:.1f} s"
    )
    return replace(config, compile="blocks" if better else "none")


def _settle_loss(config: ExecutionConfig, model: ModelConfig, rows: int, reasons: list[str]) -> ExecutionConfig:
    names = ["plain", "fused"] + (["fused_compiled"] if config.compile == "blocks" else [])
    times = {
        name: _loss_seconds(model, rows, config.device, config.precision, cross_entropy(replace(config, loss=name)))  # type: ignore[arg-type]
        for name in names
    }
    fastest = min(times, key=lambda name: times[name])
    reasons.append(f"loss {fastest}: " + ", ".join(f"{name} takes {t * 1e3:.1f} ms" for name, t in times.items()))
    return replace(config, loss=fastest)  # type: ignore[arg-type]
