"""Is another way to train worth it? Two power laws of compute, and the saving at which they meet."""

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Values, coefficient, exponent
from shoestring.plan.law import Fitted, Law


@method(
    "plan",
    kind="law",
    name="feedback_alignment",
    paper="Scaling Laws Beyond Backpropagation, arXiv:2210.14593",
    claim="direct feedback alignment is never compute-efficient: its loss is worse at any compute that it saves",
    cost="a ladder of sizes, trained either way",
)
class FeedbackAlignment(Law):
    """The loss over compute of two ways to train: L = A_0 / C^alpha_0 by backpropagation, L = A_1 / C^alpha_1 by the other.

    Filipovich et al. (2022), arXiv:2210.14593. C: FLOPs. L: nats per token. The column 'other_way' is 0 or 1.
    """

    name = "feedback_alignment"
    formula = "L = A_0 / C^alpha_0, or A_1 / C^alpha_1"

    def __init__(self) -> None:
        self.columns = ("compute", "other_way")
        self.constants = (
            coefficient("A_0", ("compute", "alpha_0", -1), starts=(1.0,)),
            exponent("alpha_0", (0.05, 0.2), centre=None),
            coefficient("A_1", ("compute", "alpha_1", -1), starts=(1.0,)),
            exponent("alpha_1", (0.05, 0.2), centre=None),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c, other = constants, row["other_way"]
        plain = c["A_0"] * row["compute"] ** -c["alpha_0"]
        return (1 - other) * plain + other * c["A_1"] * row["compute"] ** -c["alpha_1"]


def break_even(fitted: Fitted, compute: float) -> float:
    """The times of `compute` that the other way needs for the loss of backpropagation there: what it must save at least."""
    c = fitted.constants
    loss = c["A_0"] * compute ** -c["alpha_0"]
    return float((c["A_1"] / loss) ** (1 / c["alpha_1"]) / compute)
