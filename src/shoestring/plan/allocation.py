"""What a law of size and tokens says is best: to train for some compute, or to train and then to serve."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shoestring.errors import UsageError
from shoestring.method import Tokens, method


@dataclass(frozen=True)
class Allocation:
    """parameters, tokens: to train. loss: expected, nats per token. training, serving: FLOPs."""

    parameters: float
    tokens: float
    loss: float
    training: float
    serving: float


def compute_optimal(constants: Mapping[str, float], compute: float) -> Allocation:
    """The size and tokens of the lowest loss at 6 N D = C, for L = E + A / N^alpha + B / D^beta.

    N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta)): arXiv:2203.15556, equation 4.

    constants: of the law 'chinchilla', by name; beta is alpha where there is none.
    compute: FLOPs.
    """
    A, B, alpha, beta = _constants(constants)
    size = (alpha * A / (beta * B)) ** (1 / (alpha + beta)) * (compute / 6) ** (beta / (alpha + beta))
    tokens = compute / 6 / size
    return Allocation(size, tokens, _loss(constants, size, tokens), compute, 0.0)


@method(
    "plan",
    kind="allocation",
    name="beyond_chinchilla",
    paper="Beyond Chinchilla-Optimal: Accounting for Inference in Language Model Scaling Laws, arXiv:2401.00448",
    claim="with a demand of about a billion requests, models should be smaller and trained for longer than Chinchilla-optimal",
    cost="none: it follows from a fitted law",
)
def beyond_chinchilla(constants: Mapping[str, float], loss: float, *, served: Tokens = 0.0) -> Allocation:
    """The size and tokens that reach a loss for the fewest FLOPs of training and serving together.

    Sardana et al. (2024), arXiv:2401.00448, equation 1: minimise 6 N D + 2 N D_inf subject to L(N, D) = loss. The law stays as it
    is, the best point on it moves. D follows from N by the law; the best N is looked for on a logarithmic scale, where the sum has
    one minimum. Differs: FLOPs only; the paper's prices, utilisations and input tokens at another price are left to the caller.

    constants: of the law 'chinchilla', by name.
    loss: to reach, nats per token.
    served: D_inf, tokens read and written in the model's life.
    Raises: UsageError for a loss that the law says no model reaches.
    """
    A, B, alpha, beta = _constants(constants)
    gap = loss - constants["E"]
    if gap <= 0:
        raise UsageError(
            f"a loss of {loss:g} is out of reach: the law says {constants['E']:g} is left for endless size and data"
        )

    def tokens(size: float) -> float:
        return float((B / (gap - A * size**-alpha)) ** (1 / beta))

    def total(log: float) -> float:
        size = math.exp(log)
        return 6 * size * tokens(size) + 2 * size * served

    smallest = math.log(A / gap) / alpha  # below it no number of tokens is enough
    low, high = smallest + 1e-9, smallest + 60.0
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(200):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if total(left) <= total(right):
            high = right
        else:
            low = left
    size = math.exp((low + high) / 2)
    return Allocation(size, tokens(size), loss, 6 * size * tokens(size), 2 * size * served)


def _constants(constants: Mapping[str, float]) -> tuple[float, float, float, float]:
    missing = [name for name in ("E", "A", "B", "alpha") if name not in constants]
    if missing:
        raise UsageError(f"these are no constants of the law 'chinchilla': {', '.join(missing)} is missing")
    return constants["A"], constants["B"], constants["alpha"], constants.get("beta", constants["alpha"])


def _loss(constants: Mapping[str, float], size: float, tokens: float) -> float:
    A, B, alpha, beta = _constants(constants)
    return float(constants["E"] + A * size**-alpha + B * tokens**-beta)
