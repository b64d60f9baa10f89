"""How the arithmetic is carried out, decided by measuring: precision, compiled blocks, attention, loss.

Each 'auto' of `ExecutionConfig` is settled by timing the alternatives at the run's own shapes: one block forward and
backward, and the output layer with its loss, which together make a step. Compiling costs seconds before it saves any: it
is first tried in a run long enough to earn them back, and chosen where what it saves exceeds what it costs. What the allowance for
measuring does not reach is not tried, and that is said.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from shoestring import __version__
from shoestring.budget import busy_waiting
from shoestring.budget.machine import Machine
from shoestring.config import to_toml
from shoestring.errors import UsageError
from shoestring.model.chunked import LONGEST
from shoestring.model.config import ModelConfig
from shoestring.plan.pace import seconds_per_token
from shoestring.plan.sizes import flops_per_token
from shoestring.train.sections import ExecutionConfig
from shoestring.train.step_timings import Allowance, NoTimeLeft, StepBench, StepTimings, with_changes

log = logging.getLogger(__name__)

FIRST_TRY = 150.0
"""Seconds of budget from which compiling is tried for the first time. Block and loss took 48 s of two cores to compile,
and saved a third of each step, where this was measured: it is earned back after about two and a half minutes."""

AGAIN = 4.0
"""Seconds that compiling takes once the compiler has its own cache."""

LOGITS_KEPT = 1.05
"""How much faster a loss must be that has the logits of all tokens in memory at once."""

BESIDE_OTHERS = 3.0
"""How many times longer compiling takes, at most, beside other processes: the budget for a first try is to be as much longer."""


@dataclass(frozen=True)
class Execution:
    """What was decided.

    config: without any 'auto'.
    reasons: a line for each decision.
    """

    config: ExecutionConfig
    reasons: tuple[str, ...]


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
    frozen_head: bool = False,
) -> Execution:
    """Decide every 'auto'.

    rows: sequences at once.
    seconds: what the run has (None: not limited in time).
    allowance: for measuring (None: as long as it takes).
    clock: puts what compiling takes on the ledger.
    unlike: what its parts are, where they are not those that are timed here: 'wrapped' or 'packed'.
    frozen_head: whether the matrix of the output layer takes no gradient, as where adapters alone are trained.
    """
    config = with_changes(config, device=machine.device if config.device == "auto" else config.device)
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
    bench = StepBench(model, rows, StepTimings(cache / f"timings-{key}.json"), allowance, guess, frozen_head)
    if not bench.timings.known and "auto" in (config.precision, config.compile, config.loss):
        log.info("measuring which arithmetic pays at these shapes")
    reasons: list[str] = []
    if "auto" in (config.precision, config.compile):
        config = _settle_blocks(config, bench, machine.best_precision, seconds, reasons, clock)
    if config.attention == "auto":
        config = with_changes(
            config, attention=_attentions(config, model)[-1] if config.compile == "blocks" else "flash"
        )
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
    loss = "fused" if config.loss == "auto" else config.loss
    made = with_changes(config, precision=precision, compile="none", attention="flash", loss=loss)
    parts = "its matrices stay packed" if unlike == "packed" else "the model's parts are its makers' own"
    return Execution(made, (f"{precision}, not timed: {parts}, and computed as they are",))


def _attentions(config: ExecutionConfig, model: ModelConfig) -> tuple[str, ...]:
    """The ways to try. Written out, attention pays on a CPU only, at lengths whose scores stay in the cache: much once a
    compiler fuses it, and in bfloat16 without one too, as torch's flash kernel is slow there in its backward pass."""
    if config.attention != "auto":
        return (config.attention,)
    return ("flash", "chunked") if config.device == "cpu" and model.context <= LONGEST else ("flash",)


def _settle_blocks(
    config: ExecutionConfig,
    bench: StepBench,
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
        ways += [with_changes(config, precision=p, compile="none", attention=a) for p in precisions for a in attentions]
        # what pays most often first, for where there is no time to try all: as `_attentions` says
        ways.sort(
            key=lambda w: (w.precision != best_precision, (w.attention == "flash") == (w.precision == "bfloat16"))
        )
    compiled = with_changes(
        config, compile="blocks", precision=best_precision if len(precisions) > 1 else config.precision
    )
    compiled = with_changes(compiled, attention=_attentions(compiled, bench.model)[-1])
    times, untried = {}, []
    for way in ways:
        try:
            times[way] = bench.step(way)
        except NoTimeLeft:
            untried.append(way)
    if config.compile != "none" and _worth_trying(config, compiled, bench, seconds, reasons):
        try:
            with clock("compile"):
                times[compiled] = bench.step(compiled)
        except NoTimeLeft:
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
    config: ExecutionConfig, compiled: ExecutionConfig, bench: StepBench, seconds: float | None, reasons: list[str]
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


def _settle_loss(config: ExecutionConfig, bench: StepBench, reasons: list[str]) -> ExecutionConfig:
    try:
        times = bench.losses(config)
    except NoTimeLeft:
        reasons.append("loss fused: NOT measured, for want of time; it takes the least memory")
        return with_changes(config, loss="fused")
    # in blocks the logits take less memory, which is worth a little time
    fastest = min(times, key=lambda name: times[name] * (LOGITS_KEPT if name == "plain" else 1.0))
    reasons.append(f"loss {fastest}: " + ", ".join(f"{name} takes {t * 1e3:.1f} ms" for name, t in times.items()))
    return with_changes(config, loss=fastest)
