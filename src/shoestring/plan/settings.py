"""Batch, learning rates and schedule of a plan: by rule, or by laws that a ladder of runs was fitted with."""

import math
from collections.abc import Mapping
from typing import Any

from shoestring.plan import rules
from shoestring.plan.decision import PlanDecision
from shoestring.plan.law import Prediction
from shoestring.plan.learned import LEAST_RUNS, Learned

NEAR = 4.0
"""How far from its rule, as a factor, a fitted law may take a batch or a rate: beyond it, it is the law that is doubted."""


def made_by_line(learned: Learned | None, size: bool) -> str:
    """Which choices stand on a ladder of runs, and which on rules."""
    if learned is None:
        few = f"no ladder of {LEAST_RUNS} sizes and lengths on this kind of text yet (shoestring ladder)"
        return f"size, batch and rates by rule: {few}"
    by_law = [word for word, there in (("size", size), ("batch", learned.batch), ("rates", learned.rate)) if there]
    by_rule = [word for word in ("size", "batch", "rates") if word not in by_law]
    said = f"{', '.join(by_law)} by laws fitted to {learned.runs} runs" if by_law else "no choice by a fitted law"
    said += "" if learned.own else f" on {learned.corpus}"
    return f"{said}; {', '.join(by_rule)} by rule" if by_rule else said


def _near(said: Prediction, by_rule: float) -> float:
    return min(max(said.value, by_rule / NEAR), by_rule * NEAR)


def batch_of(
    tokens: float, context: int, critical_batch: float | None, learned: Learned | None, *, tuned: bool = False
) -> tuple[int, str]:
    """(sequences of a step, why). tuned: of a model that has learnt before."""
    if tuned and critical_batch is None:
        return _leaving_steps(rules.BASE_BATCH, "as suits a model that has learnt before", tokens, context)
    by_rule = rules.BATCH_TOKENS * (max(tokens, 1.0) / rules.BATCH_AT) ** rules.BATCH_EXPONENT
    if critical_batch is None and learned is not None and learned.batch is not None:
        said = learned.batch.predict({"tokens": max(tokens, 1.0)})
        chosen = max(1, 2 ** round(math.log2(max(_near(said, by_rule) / context, 1))))
        interval = f"{said.value:,.0f} ({said.low:,.0f} to {said.high:,.0f})"
        return chosen, f"by {learned.batch.law.formula} of {learned.runs} runs, {interval}"
    if critical_batch is None or by_rule <= rules.CRITICAL_SHARE * critical_batch:
        reason = "growing with the root of the tokens"
        if critical_batch is not None:
            reason += f", well below the critical batch of {critical_batch:,.0f} tokens"
        return _leaving_steps(max(4, 2 ** round(math.log2(max(by_rule / context, 1)))), reason, tokens, context)
    most = rules.CRITICAL_SHARE * critical_batch / context
    reason = f"at most {rules.CRITICAL_SHARE:g} of the critical batch of {critical_batch:,.0f} tokens"
    return max(1, 2 ** math.floor(math.log2(max(most, 1)))), reason


def _leaving_steps(batch: int, reason: str, tokens: float, context: int) -> tuple[int, str]:
    """The batch, or fewer sequences where it leaves few steps, and why."""
    most = 2 ** math.floor(math.log2(max(tokens / (rules.ENOUGH_STEPS * context), 1)))
    return (batch, reason) if batch <= most else (most, f"to leave {rules.ENOUGH_STEPS} steps where that can be")


def _named(fixed: Mapping[str, Any], section: str, default: str) -> str:
    """The method that a section asks for, be it a table or just the name."""
    given = fixed.get(section, {})
    return given if isinstance(given, str) else str(given.get("name", default))


def rates_of(fixed: Mapping[str, Any], tokens: float, learned: Learned | None) -> list[PlanDecision]:
    """Learning rates and schedule, where the methods are the defaults and nothing else was asked for."""
    found = []
    optimizer = _named(fixed, "optim", rules.OPTIMIZER)
    if optimizer in rules.RATES:
        reason = "ahead of Muon on the plan for 60 s (evidence/default-seconds), and first of docs/methods.md"
        found.append(PlanDecision("optim.name", optimizer, reason if optimizer == rules.OPTIMIZER else "as given"))
    matrices, others = rules.RATES.get(optimizer, (None, rules.RATES[rules.OPTIMIZER][1]))
    factor, why = 1.0, ""
    if matrices is not None and learned is not None and learned.rate is not None and learned.optimizer == optimizer:
        said = learned.rate.predict({"tokens": max(tokens, 1.0)})
        factor = round(_near(said, matrices) / matrices, 3)
        why = f"by {learned.rate.law.formula} of {learned.runs} runs: {said.value:.3g} ({said.low:.3g} to {said.high:.3g})"
    if matrices is not None:
        reason = why or "the best of three tried for it on the plan for 60 s"
        found.append(PlanDecision("optim.lr", matrices * factor, reason))
    if _named(fixed, "fallback", "adamw") == "adamw":
        found.append(PlanDecision("fallback.name", "adamw", "takes embeddings, head and vectors"))
        reason = "for what is not a matrix" + (", moved with the rate of the matrices" if why else "")
        found.append(PlanDecision("fallback.lr", others * factor, reason))
    if "schedule" not in fixed:
        found.append(
            PlanDecision("schedule.name", "wsd", "constant, then down to zero exactly at the end of the budget")
        )
        found.append(PlanDecision("schedule.decay", rules.DECAY, "a long decay, as the short runs tried had it"))
        found.append(PlanDecision("schedule.shape", rules.DECAY_SHAPE, "goes with the long decay"))
    return found
