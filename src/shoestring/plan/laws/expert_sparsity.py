"""How sparse a mixture of experts may be before a task suffers."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="expert_sparsity",
    paper="Optimal Sparsity of Mixture-of-Experts Language Models for Reasoning Tasks, arXiv:2508.18672",
    claim="at fixed compute memorisation improves with total parameters, while reasoning saturates and can regress when too sparse",
    cost="mixtures of several activation ratios at equal compute",
)
class ExpertSparsity(Law):
    """The loss on a task over the share of experts that a token passes through: T = T* + k (ln (a / a*))^2.

    Nakamura et al. (2025), arXiv:2508.18672, print curves and no formula; this parabola is the simplest with a best ratio a*.
    Where a* lies at its lower bound the task gains from any sparsity tried, as memorisation does there. a: active over all
    experts.
    """

    name = "expert_sparsity"
    formula = "T = T* + k (ln (a / a*))^2"
    target = "task_loss"
    ladder = "activation_ratio"

    def __init__(self) -> None:
        self.columns = ("activation_ratio",)
        self.constants = (
            LawConstant("T_best", 0.3, 1.0, (0.9, 0.99), unit="lowest"),
            LawConstant("k", 1e-6, 10.0, (0.01, 0.1)),
            LawConstant("a_best", 1e-4, 1.0, (0.02, 0.1, 0.5)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return c["T_best"] + c["k"] * (row["activation_ratio"] / c["a_best"]).log() ** 2
