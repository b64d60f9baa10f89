"""From a budget, a machine and a corpus to a run: every choice with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from shoestring.base import peek
from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine
from shoestring.budget.units import show, show_seconds
from shoestring.config import Tree, build, merge, tables
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.method import find_in
from shoestring.model.config import ModelConfig
from shoestring.model.outline import outline
from shoestring.model.transformer import Transformer
from shoestring.plan import rules
from shoestring.plan.pace import Pace, Paces

RUNTIME_MEMORY = 0.6e9
"""Bytes that Python, torch and the tokens in use take before any model does."""


@dataclass(frozen=True)
class PlanDecision:
    """One choice. key: as in a recipe. reason: why, for people."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """decisions: in the order they were made. binding: what limits the run. seconds, memory (bytes), tokens, flops, steps:
    expected. beside: seconds that go on anything but steps, by what. pace: by which tokens and seconds are reckoned."""

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


@dataclass(frozen=True)
class _Size:
    model: ModelConfig
    parameters: int
    flops_per_token: float
    pace: Pace
    tokens: float
    heldout: int
    beside: dict[str, float]
    trained: int | None = None


def _whole(model: ModelConfig) -> tuple[int, float]:
    """(parameters, forward and backward operations per token at full context) of a model whose layers differ or are wrapped."""
    with outline():
        built = Transformer(model)
    count = sum(p.numel() for p in built.parameters())
    return count, built.cost(Shape(1, model.context, backward=True)).flops / model.context


def _costs(model: ModelConfig) -> tuple[int, int, int]:
    """(parameters outside the blocks, parameters of a block, forward and backward operations of a block at full context),
    from a model of one block that takes no memory: the blocks are alike."""
    with outline():
        built = Transformer(replace(model, layers=1))
    block: Any = built.blocks[0]
    inside = sum(p.numel() for p in block.parameters())
    return (
        sum(p.numel() for p in built.parameters()) - inside,
        inside,
        block.flops(Shape(1, model.context, backward=True)),
    )


def _base(model: ModelConfig) -> LanguageModule:
    """The base of a run, to be looked at. Raises: UsageError for one that cannot be trained."""
    opened = peek(model.base)
    if not isinstance(opened.model, LanguageModule):
        raise UsageError(f"{model.base} can be used, and not be trained: it is {opened.about.kind}")
    return opened.model


def parameters(model: ModelConfig) -> int:
    """Parameters of a model, embeddings included, without building it."""
    if model.base:
        return sum(p.numel() for p in _base(model).parameters())
    if not model.uniform:
        return _whole(model)[0]
    outside, block, _ = _costs(model)
    return outside + model.layers * block


def flops_per_token(model: ModelConfig) -> float:
    """Forward and backward operations per token at full context."""
    if model.base:
        base = _base(model)
        return float(base.cost(Shape(1, model.context, backward=True)).flops / model.context)
    if not model.uniform:
        return _whole(model)[1]
    return 6 * model.width * model.vocabulary + model.layers * _costs(model)[2] / model.context


def training_memory(model: ModelConfig, count: int, rows: int, trained: int | None = None) -> float:
    """Bytes: weights, gradients and moments in float32, activations of `rows` sequences, one block of logits.

    count: parameters. trained: of them, or beside them; None: all.
    """
    tokens = rows * model.context
    activations = tokens * model.width * model.layers * rules.ACTIVATION_FLOATS * 4
    logits = tokens * model.vocabulary * 8
    weights = 16 * count if trained is None else 4 * count + 16 * trained
    return RUNTIME_MEMORY + weights + activations + logits


def adapts(fixed: Mapping[str, Any]) -> bool:
    """Whether a recipe trains adapters alone. fixed: its plain values."""
    edits = [one.get("name") for one in tables(fixed.get("edits", []))]
    return any(find_in(("lowbit", "surgery", "tune"), str(name), "edit").engine == "tune" for name in edits)


@dataclass(frozen=True)
class _Means:
    """What a plan has to divide. seconds_spent: of a budget in seconds, by now. heldout: tokens held out, None where not known.
    fixed: the [train] section as given. adapters: whether these alone are trained."""

    budget: Budget
    paces: Paces
    seconds_spent: float
    heldout: int | None
    fixed: Mapping[str, Any]
    adapters: bool = False

    def size(self, model: ModelConfig) -> tuple[_Size, str]:
        """(what the budget buys of this model, the resource that binds)."""
        count, each = parameters(model), flops_per_token(model)
        pace, budget = self.paces.of(model, each), self.budget
        bought: dict[str, float] = {}
        if budget.flops is not None:
            bought["flops"] = budget.flops / each
        if budget.tokens is not None:
            bought["tokens"] = budget.tokens
        seconds = None if budget.seconds is None else budget.seconds - self.seconds_spent
        if seconds is not None:
            bought["seconds"] = seconds / pace.per_token
        if not bought:
            raise UsageError(f"a budget of {budget} says nothing about how long to train: add seconds, FLOPs or tokens")
        heldout = self._heldout(min(bought.values()), pace, seconds)
        trained = count // rules.ADAPTED if self.adapters else None
        beside = self._beside(count if trained is None else trained, pace, heldout, seconds)
        if seconds is not None:
            bought["seconds"] = max(seconds - sum(beside.values()), 0.0) / pace.per_token
        binding = min(bought, key=lambda resource: bought[resource])
        return _Size(model, count, each, pace, bought[binding], heldout, beside, trained), binding

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
        on_the_way = 0.0 if seconds is None else seconds / float(self.fixed.get("checkpoint_every", 60.0))
        return {
            "starting": pace.starting,
            "measuring": pace.measuring,
            "evaluating": between + evaluation,
            "saving": saving * (1 + int(on_the_way)),
            "a sample": rules.sampling_seconds(int(self.fixed.get("sample_tokens", 160))),
        }


def _model(shape: rules.Rung, vocabulary: int, context: int, fixed: Mapping[str, Any]) -> ModelConfig:
    planned = {
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.width // shape.head_width,
        "vocabulary": vocabulary,
        "context": context,
    }
    if "width" in fixed and "heads" not in fixed:
        planned["heads"] = max(1, int(fixed["width"]) // 64)
    return build(ModelConfig, merge(planned, fixed))


def _choose_size(
    means: _Means, corpus_tokens: int, vocabulary: int, fixed: Mapping[str, Any], limit: float
) -> tuple[_Size, str, str]:
    """The largest rung with tokens enough. Returns (size, binding resource, reason)."""
    chosen: tuple[_Size, str, str] | None = None
    for shape in rules.LADDER:
        context = rules.context_for(chosen[0].tokens if chosen else 0.0)
        model = _model(shape, vocabulary, context, fixed)
        size, binding = means.size(model)
        tokens, count = size.tokens, size.parameters
        reason = (
            f"the largest rung that still sees {rules.TOKENS_PER_PARAMETER:g} tokens a parameter: "
            f"{count / 1e6:.2f} M parameters, {tokens / 1e6:.2f} M tokens"
        )
        epochs = tokens / corpus_tokens
        if chosen is not None and training_memory(model, count, 1, size.trained) > limit:
            chosen = (chosen[0], "memory", f"the largest rung that fits in {show('bytes', limit)} of memory")
            break
        if chosen is None or tokens >= rules.TOKENS_PER_PARAMETER * count:
            if tokens < rules.TOKENS_PER_PARAMETER * count:
                reason = f"the smallest rung: {count / 1e6:.2f} M parameters, {tokens / 1e6:.2f} M tokens"
            chosen = (size, binding, reason)
        elif chosen[0].tokens / corpus_tokens > rules.MOST_EPOCHS:
            reason = f"a smaller one would pass over the corpus more than {rules.MOST_EPOCHS:g} times"
            chosen = (size, binding, f"{reason}: {count / 1e6:.2f} M parameters, {epochs:.1f} epochs")
        else:
            break
        if set(fixed) >= {"layers", "width"}:
            given = f"the shape of {fixed['base']}" if fixed.get("base") else "as given"
            chosen = (size, binding, f"{given}: {count / 1e6:.2f} M parameters, {tokens / 1e6:.2f} M tokens")
            break
    assert chosen is not None
    return chosen


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
) -> Plan:
    """Decide what `fixed`, the plain values that a recipe or the command line gives, leaves open.

    corpus_tokens: training tokens of the corpus. memory: bytes the run may take (None: the machine's).
    seconds_spent: what preparing the data has taken from a budget in seconds. critical_batch: tokens, as measured.
    workers: between which each batch is divided. at_once: how many of them compute at the same time, each at the rate of
    `machine`; the others, in one process with those, take their turns. paces: what was measured (None: all by rule).
    heldout_tokens: that are held out. held: bytes that the process which is to train has held at most by now.
    Raises: UsageError when nothing fits.
    """
    if budget.seconds is not None and budget.seconds - seconds_spent <= 1.0:
        raise UsageError(
            f"a budget of {budget} is spent on preparing the data: give more time, or run again with it prepared"
        )
    given = dict(fixed.get("model", {}))
    limit = memory if memory is not None else 0.8 * machine.memory
    paces = paces or paces_for(machine, budget, fixed, at_once)
    means = _Means(budget, paces, seconds_spent, heldout_tokens, fixed.get("train", {}), adapts(fixed))
    size, binding, reason = _choose_size(means, corpus_tokens, vocabulary, given, limit)
    model, pace = size.model, size.pace
    decisions = [
        PlanDecision("model.layers", model.layers, reason),
        PlanDecision("model.width", model.width, "goes with the layers"),
        PlanDecision("model.heads", model.heads, f"heads of {model.head_width}"),
        PlanDecision("model.vocabulary", model.vocabulary, "as many tokens as the tokenizer has"),
        PlanDecision("model.context", model.context, f"windows long enough for {size.tokens / 1e6:.2f} M tokens"),
    ]
    batch, reason = _batch(size, critical_batch)
    if batch % workers:
        batch, reason = math.ceil(batch / workers) * workers, f"{reason}, equal parts for {workers} workers"
    batch = int(fixed.get("train", {}).get("batch", batch))
    steps = size.tokens / (batch * model.context)
    decisions.append(
        PlanDecision("train.batch", batch, f"{batch * model.context} tokens a step, {reason}: {steps:.0f} steps")
    )
    rows = max(batch // workers, 1)
    while rows > 1 and (
        rows * model.context > 16384 or training_memory(model, size.parameters, rows, size.trained) > limit
    ):
        rows = rows // 2 if rows % 2 == 0 else 1
    needed = training_memory(model, size.parameters, rows, size.trained)
    if needed > limit:
        raise UsageError(
            f"the smallest run planned needs {show('bytes', needed)} of memory, {show('bytes', limit)} are allowed"
        )
    if rows < batch // workers:
        decisions.append(
            PlanDecision("train.micro_batch", rows, f"{rows} of {batch} sequences at once stay within memory and cache")
        )
    decisions += _rates(fixed)
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
    if size.tokens > rules.MOST_EPOCHS * corpus_tokens:
        warnings.append(
            f"the corpus is passed over {size.tokens / corpus_tokens:.1f} times: more text would help more than more compute"
        )
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
    )


def _batch(size: _Size, critical_batch: float | None) -> tuple[int, str]:
    """(sequences of a step, why)."""
    context = size.model.context
    by_rule = rules.BATCH_TOKENS * (size.tokens / rules.BATCH_AT) ** rules.BATCH_EXPONENT
    if critical_batch is None or by_rule <= rules.CRITICAL_SHARE * critical_batch:
        reason = "growing with the root of the tokens"
        if critical_batch is not None:
            reason += f", well below the critical batch of {critical_batch:,.0f} tokens"
        return max(4, 2 ** round(math.log2(max(by_rule / context, 1)))), reason
    most = rules.CRITICAL_SHARE * critical_batch / context
    reason = f"at most {rules.CRITICAL_SHARE:g} of the critical batch of {critical_batch:,.0f} tokens"
    return max(1, 2 ** math.floor(math.log2(max(most, 1)))), reason


def _named(fixed: Mapping[str, Any], section: str, default: str) -> str:
    """The method that a section asks for, be it a table or just the name."""
    given = fixed.get(section, {})
    return given if isinstance(given, str) else str(given.get("name", default))


def _rates(fixed: Mapping[str, Any]) -> list[PlanDecision]:
    """Learning rates and schedule, where the methods are the defaults and nothing else was asked for."""
    found = []
    optimizer = _named(fixed, "optim", rules.OPTIMIZER)
    if optimizer in rules.RATES:
        reason = "ahead of Muon on the plan for 60 s (evidence/default-seconds), and first of docs/methods.md"
        found.append(PlanDecision("optim.name", optimizer, reason if optimizer == rules.OPTIMIZER else "as given"))
    matrices, others = rules.RATES.get(optimizer, (None, rules.RATES[rules.OPTIMIZER][1]))
    if matrices is not None:
        found.append(PlanDecision("optim.lr", matrices, "the best of three tried for it on the plan for 60 s"))
    if _named(fixed, "fallback", "adamw") == "adamw":
        found.append(PlanDecision("fallback.name", "adamw", "takes embeddings, head and vectors"))
        found.append(PlanDecision("fallback.lr", others, "for what is not a matrix"))
    if "schedule" not in fixed:
        found.append(
            PlanDecision("schedule.name", "wsd", "constant, then down to zero exactly at the end of the budget")
        )
        found.append(PlanDecision("schedule.decay", rules.DECAY, "a long decay, as the short runs tried had it"))
        found.append(PlanDecision("schedule.shape", rules.DECAY_SHAPE, "goes with the long decay"))
    return found
