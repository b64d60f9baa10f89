"""From a budget, a machine and a corpus to a run: every choice with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine
from shoestring.budget.units import show, show_seconds
from shoestring.config import Tree, tables
from shoestring.errors import UsageError
from shoestring.method import find_in
from shoestring.model.config import ModelConfig
from shoestring.plan import rules
from shoestring.plan.choosing import UseLimit, size_by_law, size_by_rule
from shoestring.plan.decision import PlanDecision
from shoestring.plan.law import Prediction
from shoestring.plan.learned import Learned
from shoestring.plan.means import Exchanged, Means, PlannedSize
from shoestring.plan.pace import Pace, Paces
from shoestring.plan.search import Search, worth
from shoestring.plan.settings import batch_of, made_by_line, rates_of
from shoestring.plan.sizes import training_memory


@dataclass(frozen=True)
class Plan:
    """decisions: in the order they were made. binding: what limits the run. seconds, memory (bytes), tokens, flops, steps:
    expected. beside: seconds that go on anything but steps, by what. pace: by which tokens and seconds are reckoned. sent:
    bytes that all workers send. searched: the sizes that a fitted law ranked, None where the rules chose. foreign: whether
    that law is of another corpus, whose losses are not those of this one. made_by: laws or rules, as one line."""

    decisions: tuple[PlanDecision, ...]
    binding: str
    seconds: float
    memory: float
    tokens: float
    flops: float
    steps: float
    parameters: int
    beside: dict[str, float]
    pace: Pace
    warnings: tuple[str, ...]
    sent: float = 0.0
    searched: Search | None = None
    foreign: bool = False
    made_by: str = ""
    loss: Prediction | None = None

    def tree(self) -> Tree:
        """The decisions as the plain values of a recipe."""
        made: Tree = {}
        for decision in self.decisions:
            *sections, last = decision.key.split(".")
            branch = made
            for section in sections:
                branch = branch.setdefault(section, {})
            branch[last] = decision.value
        return made


def adapts(fixed: Mapping[str, Any]) -> bool:
    """Whether a recipe trains adapters alone. fixed: its plain values."""
    edits = [one.get("name") for one in tables(fixed.get("edits", []))]
    return any(find_in(("lowbit", "surgery", "tune"), str(name), "edit").engine == "tune" for name in edits)


def _loss(learned: Learned | None, size: PlannedSize, corpus_tokens: int) -> Prediction | None:
    if learned is None or not learned.own or size.tokens <= 0:
        return None
    return learned.law.predict({"parameters": float(size.parameters), "tokens": worth(size.tokens, corpus_tokens)})


def paces_for(machine: Machine, budget: Budget, fixed: Mapping[str, Any], at_once: int = 1) -> Paces:
    """The paces of a plan before anything is measured; the arguments are those of `plan`."""
    execution = fixed.get("execution", {})
    open_ways = [key for key in ("precision", "compile", "loss") if execution.get(key, "auto") == "auto"]
    share = math.inf if budget.seconds is None else rules.MEASURING_SHARE * budget.seconds
    measuring = min(rules.MEASURING_SECONDS, share) if open_ways else 0.0
    return Paces(at_once * machine.matmul[machine.best_precision], measuring)


def plan(
    budget: Budget,
    machine: Machine,
    *,
    corpus_tokens: int,
    vocabulary: int,
    fixed: Mapping[str, Any],
    memory: float | None = None,
    seconds_spent: float = 0.0,
    critical_batch: float | None = None,
    workers: int = 1,
    at_once: int = 1,
    paces: Paces | None = None,
    heldout_tokens: int | None = None,
    held: float = 0.0,
    exchanged: Exchanged | None = None,
    served: float = 0.0,
    learned: Learned | None = None,
    use: UseLimit | None = None,
) -> Plan:
    """Decide what `fixed`, the plain values that a recipe or the command line gives, leaves open.

    corpus_tokens: training tokens of the corpus. memory: bytes the run may take (None: the machine's).
    seconds_spent: what came before, data and decisions of edits, has taken from a budget in seconds.
    critical_batch: tokens, as measured.
    workers: between which each batch is divided. at_once: how many of them compute at the same time, each at the rate of
    `machine`; the others, in one process with those, take their turns. paces: what was measured (None: all by rule).
    heldout_tokens: that are held out. held: bytes that the process which is to train has held at most by now.
    exchanged: what workers send each other. served: tokens that the model is to read and write in its life, paid for from the
    same budget. learned: what a ladder of runs has taught; None: size, batch and rates are chosen by rule. use: what the model may
    take in use; None: what it likes.
    Raises: UsageError when nothing fits.
    """
    if budget.seconds is not None and budget.seconds - seconds_spent <= 1.0:
        raise UsageError(
            f"a budget of {budget} is spent before training begins, on preparing data and deciding edits: give more time (data "
            "that is prepared is kept, for the next run)"
        )
    given = dict(fixed.get("model", {}))
    limit = memory if memory is not None else 0.8 * machine.memory
    paces = paces or paces_for(machine, budget, fixed, at_once)

    tuned = bool(given.get("base")) and not fixed.get("train", {}).get("base_optimizer")

    def batch_for(tokens: float, model: ModelConfig) -> int:
        by_rule, _ = batch_of(tokens, model.context, critical_batch, learned, tuned=tuned)
        return int(fixed.get("train", {}).get("batch", by_rule))

    means = Means(
        budget,
        paces,
        seconds_spent,
        heldout_tokens,
        fixed.get("train", {}),
        adapts(fixed),
        exchanged,
        served,
        batch_for,
    )
    settled = set(given) >= {"layers", "width"} or bool(given.get("base"))
    looked = None
    if learned is not None and not settled:
        looked = size_by_law(means, learned, corpus_tokens, vocabulary, given, limit, use)
    if looked is None:
        size, binding, reason = size_by_rule(means, corpus_tokens, vocabulary, given, limit, use)
    else:
        size, binding, reason = looked[:3]
    model, pace = size.model, size.pace
    decisions = [
        PlanDecision("model.layers", model.layers, reason),
        PlanDecision("model.width", model.width, "goes with the layers"),
        PlanDecision("model.heads", model.heads, f"heads of {model.head_width}"),
        PlanDecision("model.vocabulary", model.vocabulary, "as many tokens as the tokenizer has"),
        PlanDecision("model.context", model.context, f"windows long enough for {size.tokens / 1e6:.2f} M tokens"),
    ]
    batch, reason = batch_of(size.tokens, model.context, critical_batch, learned, tuned=tuned)
    if batch % workers:
        batch, reason = math.ceil(batch / workers) * workers, f"{reason}, equal parts for {workers} workers"
    batch = int(fixed.get("train", {}).get("batch", batch))
    steps = size.tokens / (batch * model.context)
    decisions.append(
        PlanDecision("train.batch", batch, f"{batch * model.context} tokens a step, {reason}: {steps:.0f} steps")
    )

    def needs(rows: int) -> float:
        return training_memory(model, size.parameters, rows * model.context, size.trained)

    rows = max(batch // workers, 1)
    while rows > 1 and (rows * model.context > 16384 or needs(rows) > limit):
        rows = rows // 2 if rows % 2 == 0 else 1
    needed = needs(rows)
    if needed > limit:
        raise UsageError(
            f"the smallest run planned needs {show('bytes', needed)} of memory, {show('bytes', limit)} are allowed"
        )
    if rows < batch // workers:
        decisions.append(
            PlanDecision("train.micro_batch", rows, f"{rows} of {batch} sequences at once stay within memory and cache")
        )
    saved = 4 * (size.parameters if size.trained is None else size.trained)
    if (every := rules.checkpoint_every(saved)) > rules.CHECKPOINT_SECONDS:
        took = show_seconds(rules.saving_seconds(saved))
        decisions.append(PlanDecision("train.checkpoint_every", every, f"seconds: a checkpoint takes about {took}"))
    decisions += rates_of(fixed, size.tokens, learned)
    decisions.append(PlanDecision("train.heldout_tokens", size.heldout, "an evaluation takes about 1 % of the budget"))
    total = size.flops_per_token * size.tokens
    beside = seconds_spent + sum(size.beside.values())
    expected = beside + size.tokens * pace.per_token
    if binding == "seconds" and budget.seconds:
        expected = budget.seconds
    if expected > rules.LONGEST_SECONDS:
        raise UsageError(f"a budget of {budget} takes {show_seconds(expected)} on this machine: give less, 8h say")
    # a little more than by now, as a longer run measures and evaluates a little more
    few = math.ceil(1.2 * (beside + rules.FEW_STEPS * batch * model.context * pace.per_token))
    if binding == "seconds" and size.tokens <= 0:
        most = ", ".join(f"{show_seconds(took)} of {what}" for what, took in size.beside.items() if took >= 0.05)
        raise UsageError(
            f"a budget of {budget} buys no step: {show_seconds(seconds_spent)} are spent, and a run takes {most} beside its "
            f"steps: give at least {few}s"
        )
    warnings = []
    if binding == "seconds" and steps < rules.FEW_STEPS:
        warnings.append(f"this buys about {steps:.0f} steps, too few to learn from: {few}s would buy {rules.FEW_STEPS}")
    if not rules.TRIED_SECONDS[0] <= expected <= rules.TRIED_SECONDS[1]:
        warnings.append("this budget is outside those the rules were tuned on: take the plan as a first guess")
    epochs = size.tokens / corpus_tokens
    if epochs > rules.MOST_EPOCHS:
        said = f"the corpus is passed over {epochs:.1f} times: more text would help more than more compute"
        if epochs > rules.LAST_EPOCHS:
            share = rules.LAST_EPOCHS / epochs
            said += f", and about {share:.1%} of this budget would teach nearly all that this text can"
        warnings.append(said)
    return Plan(
        decisions=tuple(decisions),
        binding=binding,
        seconds=expected,
        memory=max(pace.memory or needed, held),
        tokens=size.tokens,
        flops=total,
        steps=steps,
        parameters=size.parameters,
        beside=size.beside,
        pace=pace,
        warnings=tuple(warnings),
        sent=size.sent,
        searched=looked[3] if looked else None,
        foreign=learned is not None and not learned.own,
        made_by=made_by_line(learned, looked is not None),
        loss=_loss(learned, size, corpus_tokens),
    )
