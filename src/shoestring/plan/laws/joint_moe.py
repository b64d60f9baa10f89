"""The joint law of dense models and mixtures of experts."""

from typing import ClassVar

from torch import Tensor

from shoestring.method import Positive, method
from shoestring.plan.formula import Published, Values, coefficient, exponent, floor, signed
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="joint_moe",
    paper="Joint MoE Scaling Laws: Mixture of Experts Can Be Memory Efficient, arXiv:2502.05172",
    claim="one law of active parameters, tokens and experts; mixtures of experts can be more memory-efficient than dense models",
    cost="a grid of small runs with 1 to 32 experts",
)
class JointMoE(Law):
    """The loss of N active parameters, D tokens and E experts.

        L = c + a Ê^delta N^(-alpha + gamma ln Ê) + b Ê^omega D^(-beta + zeta ln Ê)
        1 / Ê = 1 / (E - 1 + 1 / (1 / E_start - 1 / E_max)) + 1 / E_max

    Ludziejewski et al. (2025), arXiv:2502.05172. Ê: experts, saturating: from E_start for a dense model (E = 1) to E_max. L, c:
    nats per token. Signs of alpha and beta are those of Chinchilla's law. Differs: E_start and E_max are options, as runs with
    few numbers of experts do not determine them.

    first: E_start.
    most: E_max.
    """

    name = "joint_moe"
    formula = "L = c + a Ê^delta N^(-alpha + gamma ln Ê) + b Ê^omega D^(-beta + zeta ln Ê)"

    published: ClassVar[Published] = {  # with first = 2.0732 and most = 290.4521, arXiv:2502.05172, table 3
        "ludziejewski": {
            "a": 35.91, "alpha": 0.1889, "delta": -0.2285, "gamma": 0.0098,
            "b": 35.98, "beta": 0.1775, "omega": 0.5529, "zeta": -0.0259, "c": 1.3637,
        }
    }  # fmt: skip

    def __init__(self, *, first: Positive = 2.0732, most: Positive = 290.4521) -> None:
        self.first, self.most = first, most
        self.columns = ("active", "tokens", "experts")
        self.constants = (
            floor("c"),
            coefficient("a", ("active", "alpha", -1)),
            coefficient("b", ("tokens", "beta", -1)),
            exponent("alpha", (0.2, 0.5)),
            exponent("beta", (0.2, 0.5)),
            signed("delta", -2.0, 2.0, (0.0,)),
            signed("gamma", -0.2, 0.2, (0.0,)),
            signed("omega", -2.0, 2.0, (0.0,)),
            signed("zeta", -0.2, 0.2, (0.0,)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        saturating = 1 / (1 / (row["experts"] - 1 + 1 / (1 / self.first - 1 / self.most)) + 1 / self.most)
        log = saturating.log()
        size = c["a"] * (c["delta"] * log + (c["gamma"] * log - c["alpha"]) * row["active"].log()).exp()
        data = c["b"] * (c["omega"] * log + (c["zeta"] * log - c["beta"]) * row["tokens"].log()).exp()
        return c["c"] + size + data
