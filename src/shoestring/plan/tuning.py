"""What tuning a model within a budget takes: window, batch, rank and rate, each with its reason.

The rates are those that each method's authors or peft use for models of this kind; none was tuned here yet.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shoestring.budget.budget import Budget
from shoestring.budget.machine import Machine
from shoestring.budget.units import parse_memory, show
from shoestring.config import Choice
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.plan import rules
from shoestring.plan.decision import PlanDecision
from shoestring.plan.pace import seconds_per_token
from shoestring.plan.sizes import training_memory
from shoestring.tune import matrix
from shoestring.tune.adapter_edit import matrices

LONGEST_WINDOW = 512
"""Tokens of a window, at most, where nothing is said."""

GRAIN = 64
"""Windows are multiples of so many tokens."""

COVERED = 0.95
"""The share of the chats that a window is to hold whole."""

STEPS = 100
"""Steps that a batch must leave, where it can: fewer learn little, however good each is."""

MOST_BATCH = 16
"""Sequences of a step, at most: small batches learn more from few tokens."""

RANKS = (8, 16, 32, 64)
PARAMETERS_A_TOKEN = 0.5
"""Parameters of an adapter for each token that is learnt: below that it cannot hold what the text says (the rule of thumb of
"LoRA Without Regret": two bits a parameter, about a bit a token)."""

JUDGING = 0.2
"""The share of the budget that judging may take."""

EVALUATIONS, FORWARD = 10, 0.5
"""Before the first step, three times on the way and at the end, of two texts; and an evaluation's share of the work of training."""

MOST_JUDGED = 16384
"""Tokens of an evaluation, at most."""

USUAL_RATE = 1e-3
"""Of an edit that names none."""

FROZEN = 2 / 3
"""Of the operations of training in full, those that are left where the weights take no gradients."""


def plan_tuning(
    model: LanguageModule,
    method: Choice | None,
    budget: Budget,
    machine: Machine,
    given: Mapping[str, Any],
    lengths: Sequence[int] = (),
    learnt: float = 1.0,
) -> tuple[PlanDecision, ...]:
    """Decide what a recipe leaves open.

    model: the base. method: the edit; None: all weights are tuned. given: the plain values of the recipe.
    lengths: of the chats, in tokens; none for text, whose windows run across documents.
    learnt: the share of the tokens that is learnt, which is what a budget of tokens counts.
    """
    context, reason = _window(model.about.context, lengths)
    if "context" in given.get("model", {}):
        context, reason = int(given["model"]["context"]), "as given"
    elif given.get("memory"):
        context, reason = _that_fits(model, method, parse_memory(given["memory"]), context, reason)
    made = [PlanDecision("model.context", context, reason)]
    each = model.cost(Shape(1, context, backward=True)).flops / context * (1.0 if method is None else FROZEN)
    tokens = _tokens(budget, each, machine, model.about.width, learnt)
    batch = max(1, min(MOST_BATCH, 2 ** math.floor(math.log2(max(tokens / (STEPS * context), 1)))))
    made.append(
        PlanDecision(
            "train.batch",
            batch,
            f"about {tokens:,.0f} tokens fit in the budget: {tokens / (batch * context):.0f} steps",
        )
    )
    judged = int(min(MOST_JUDGED, max(context, JUDGING * tokens / (FORWARD * EVALUATIONS))))
    reason = f"{EVALUATIONS:g} evaluations of new and of old text take about {JUDGING:.0%} of the budget"
    made += [PlanDecision(key, judged, reason) for key in ("train.heldout_tokens", "old.tokens")]
    if method is not None:
        rate = getattr(method.build(), "rate", USUAL_RATE)
        if "rank" in method.options:
            made.append(_rank(model, method, tokens * learnt))
        made += [PlanDecision(f"{section}.lr", rate, f"what suits {method.name}") for section in ("optim", "fallback")]
    return tuple(one for one in made if not _has(given, one.key))


def _window(most: int, lengths: Sequence[int]) -> tuple[int, str]:
    if not lengths:
        return min(most, LONGEST_WINDOW), "windows run across documents"
    wanted = sorted(lengths)[min(len(lengths) - 1, int(COVERED * len(lengths)))]
    context = min(most, LONGEST_WINDOW, max(GRAIN, math.ceil(wanted / GRAIN) * GRAIN))
    held = sum(length <= context for length in lengths) / len(lengths)
    return context, f"holds {held:.0%} of the chats whole, the longest has {max(lengths)} tokens"


def _that_fits(
    model: LanguageModule, method: Choice | None, memory: float, context: int, reason: str
) -> tuple[int, str]:
    """The window, or the longest that one sequence of it can be read with in so many bytes; what does not fit at all, the plan of
    the run refuses."""
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = None if method is None else count // rules.ADAPTED
    fits = context
    while fits > GRAIN and training_memory(model.about, count, fits, trained) > memory:
        fits -= GRAIN
    if fits == context:
        return context, reason
    return fits, f"the longest that {show('bytes', memory)} of memory hold"


def _tokens(budget: Budget, each: float, machine: Machine, width: int, learnt: float) -> float:
    """Tokens that are read within a budget, by rule."""
    bought = []
    if budget.tokens is not None:
        bought.append(budget.tokens / learnt)
    if budget.flops is not None:
        bought.append(budget.flops / each)
    if budget.seconds is not None:
        bought.append(budget.seconds / seconds_per_token(each, width, machine.matmul[machine.best_precision]))
    return float(min(bought, default=0.0))


def _rank(model: LanguageModule, method: Choice, tokens: float) -> PlanDecision:
    """The smallest rank whose parameters can hold what so many tokens teach."""
    a_rank = sum(sum(matrix.sizes(model.get_submodule(name))) for name in matrices(model))
    rank = next((rank for rank in RANKS if rank * a_rank >= PARAMETERS_A_TOKEN * tokens), RANKS[-1])
    return PlanDecision(
        f"edits.{method.name}.rank",
        rank,
        f"{rank * a_rank:,} parameters for about {tokens:,.0f} tokens that are learnt",
    )


def _has(given: Mapping[str, Any], key: str) -> bool:
    branch: Any = given
    for part in key.split("."):
        if isinstance(branch, list | tuple):  # edits
            branch = next((one for one in branch if isinstance(one, Mapping) and one.get("name") == part), None)
        elif isinstance(branch, Mapping) and part in branch:
            branch = branch[part]
        else:
            return False
    return branch is not None
