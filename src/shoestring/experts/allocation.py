"""One budget divided among seed models and experts."""

from collections.abc import Sequence
from dataclasses import replace

from shoestring.budget.budget import Budget
from shoestring.budget.ledger import Totals
from shoestring.errors import ShoestringError
from shoestring.experts.config import Allocate
from shoestring.model.config import ModelConfig
from shoestring.plan.sizes import flops_per_token


def token_ratios(rule: Allocate, models: Sequence[ModelConfig], spread: float) -> list[float]:
    """How the numbers of tokens that experts are trained on stand to each other; the easiest cluster's model comes first.

    'tokens' (all train for as many steps) with one size is M_Ho-I_Ho of HDEE (Ersoy, Kolehmainen and Andrade, 2025, "HDEE:
    Heterogeneous Domain Expert Ensemble", arXiv:2502.19385), and with sizes that grow with difficulty M_He-I_Ho;
    'difficulty' with one size is M_Ho-I_He. There three domains, called easy, medium and hard by people, get 300, 400 and 500
    steps: 1 - spread, 1, 1 + spread of the mean with spread = 0.25, here linear in the rank of the difficulty.
    """
    count = len(models)
    if rule == "tokens":
        return [1.0] * count
    if rule == "equal":
        return [1.0 / flops_per_token(model) for model in models]
    return [1 + spread * (2 * rank / (count - 1) - 1) if count > 1 else 1.0 for rank in range(count)]


def divided(budget: Budget, models: Sequence[ModelConfig], ratios: Sequence[float]) -> list[Budget]:
    """The budget in parts that buy tokens in these ratios: by tokens if it is in tokens; FLOPs and seconds by the
    operations of those tokens (the optimiser's own, a few per cent, are taken to be in proportion)."""
    work = [ratio * flops_per_token(model) for model, ratio in zip(models, ratios, strict=True)]
    parts = []
    for mine, ratio in zip(work, ratios, strict=True):
        shares = {"tokens": ratio / sum(ratios), "flops": mine / sum(work), "seconds": mine / sum(work)}
        parts.append(Budget(**{unit: limit * shares[unit] for unit, limit in budget.limits.items()}))
    return parts


def scaled(budget: Budget, factor: float) -> Budget:
    return Budget(**{unit: limit * factor for unit, limit in budget.limits.items()})


def remaining(budget: Budget, spent: Totals) -> Budget:
    """What is left of each limit. Raises: ShoestringError where one is used up."""
    gone = {"tokens": spent.tokens, "flops": spent.flops, "seconds": spent.wall_clock}
    left = {unit: limit - gone[unit] for unit, limit in budget.limits.items()}
    for unit, amount in left.items():
        if amount <= 0:
            raise ShoestringError(f"nothing is left for the experts: the budget in {unit} ended before them")
    return replace(budget, **left)
