"""Chinchilla's law for sparse pre-training: what counts is how many parameters there were on average."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Values, coefficient, exponent, floor
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="average_parameters",
    paper="The Journey Matters: Average Parameter Count over Pre-training Unifies Sparse and Dense Scaling Laws, arXiv:2501.12486",
    claim="with the average parameter count over pre-training Chinchilla's law models sparse and dense pre-training alike",
    cost="a grid of small runs, dense and pruned on the way",
)
class AverageParameters(Law):
    """L = E + A / N_avg^alpha + B / D^beta, where N_avg is the mean number of parameters left over the steps of training.

    Jin et al. (2025), arXiv:2501.12486. D: tokens. L, E: nats per token. A dense run has N_avg = N.
    """

    name = "average_parameters"
    formula = "L = E + A / N_avg^alpha + B / D^beta"

    def __init__(self) -> None:
        self.columns = ("average_parameters", "tokens")
        self.constants = (
            floor(),
            coefficient("A", ("average_parameters", "alpha", -1)),
            coefficient("B", ("tokens", "beta", -1)),
            exponent("alpha"),
            exponent("beta"),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return c["E"] + c["A"] * row["average_parameters"] ** -c["alpha"] + c["B"] * row["tokens"] ** -c["beta"]


def average(parameters: float, sparsity: float, start: float = 0.25, end: float = 0.75) -> float:
    """N_avg of a run that is pruned from `start` to `end` of training by the cubic schedule, to `sparsity` of `parameters`.

    Sparsity at progress t within the pruning is sparsity (1 - (1 - t)^3), whose mean is 3/4 of its end.
    """
    return parameters * (1 - sparsity * (0.75 * (end - start) + (1 - end)))
