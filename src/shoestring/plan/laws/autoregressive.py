"""Power law plus constant, for any kind of data that is predicted a token at a time."""

from typing import Literal

from shoestring.method import method
from shoestring.plan.law import Fitted
from shoestring.plan.power_law import PowerLaw


@method(
    "plan",
    kind="law",
    name="autoregressive",
    paper="Scaling Laws for Autoregressive Generative Modeling, arXiv:2010.14701",
    claim="loss falls as a power law plus a constant in four domains; the constant estimates the entropy of the data",
    cost="a ladder of small runs",
)
class Autoregressive(PowerLaw):
    """The loss of a kind of data over one of size, compute and tokens: L = E + A / x^alpha.

    Henighan et al. (2020), arXiv:2010.14701: L = L_inf + (x_0 / x)^alpha, with E = L_inf and A = x_0^alpha. E estimates the
    entropy of the data, the rest the divergence of the model from them, in nats per token.

    along: x.
    """

    name = "autoregressive"
    formula = "L = E + A / x^alpha"

    def __init__(self, *, along: Literal["parameters", "compute", "tokens"] = "parameters") -> None:
        super().__init__(along)


def size_for(fitted: Fitted, divergence: float) -> float:
    """The x at which only `divergence` nats per token are left above the entropy: (A / divergence)^(1 / alpha)."""
    return float((fitted.constants["A"] / divergence) ** (1 / fitted.constants["alpha"]))
