"""Do parameters that training never changes count?"""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Values, coefficient, exponent, floor
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="trainable_parameters",
    paper="Is the Number of Trainable Parameters All That Actually Matters?, arXiv:2109.11928",
    claim="the loss over compute depends on trainable parameters only; frozen or structured ones do not deceive the law",
    cost="a ladder of sizes, with and without frozen parameters",
)
class TrainableParameters(Law):
    """L = E + A / (N_t + phi N_f)^alpha, where N_t parameters are trained and N_f are frozen at random, or stood for by structure.

    Chatelain et al. (2021), arXiv:2109.11928. phi: the share of a trained parameter that a frozen one is worth. The paper finds
    none, so an interval of phi that holds 0.001, its lower bound, agrees with it. L, E: nats per token.
    """

    name = "trainable_parameters"
    formula = "L = E + A / (N_t + phi N_f)^alpha"
    ladder = "trainable"

    def __init__(self) -> None:
        self.columns = ("trainable", "frozen")
        self.constants = (
            floor(),
            coefficient("A", ("trainable", "alpha", -1)),
            exponent("alpha", (0.1, 0.35)),
            LawConstant("phi", 1e-3, 2.0, (0.01, 0.5)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        return c["E"] + c["A"] * (row["trainable"] + c["phi"] * row["frozen"]) ** -c["alpha"]
