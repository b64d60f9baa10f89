"""The law of distillation: the loss of a student from its size, its tokens and its teacher's loss."""

from torch import Tensor

from shoestring.method import Positive, method
from shoestring.plan.formula import LawConstant, Values, coefficient, exponent
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="distillation",
    paper="Distillation Scaling Laws, arXiv:2502.08606",
    claim="predicts a student's loss; with an existing teacher distillation beats supervised training up to a compute that grows "
    "with student size, else supervised training is better",
    cost="students of several sizes, token counts and teachers",
)
class DistillationLaw(Law):
    """The loss of a student from its size, its tokens and its teacher's loss.

    N: parameters of the student. D: its tokens. L_T: loss of the teacher.

        L_S = L_T + (1 + (L_T / (L~ d1))^(1 / f1))^(-c1 f1) / L_T^c0 (A / N^alpha + B / D^beta)^gamma

    Busbridge et al. (2025), arXiv:2502.08606, equation 8. L~ is the loss of the same student without a teacher; the table has
    it, as the column 'supervised_loss', from a law of its own or from a run. A better teacher helps until the student is too
    small for it. Losses are in nats per token. Differs: L~ is given, where the paper puts its supervised law there.

    gamma: of the student's terms; the runs of one corpus determine it badly, so it is held.
    """

    name = "distillation"
    formula = "L_S = L_T + (1 + (L_T / (L~ d1))^(1 / f1))^(-c1 f1) / L_T^c0 (A / N^alpha + B / D^beta)^gamma"

    def __init__(self, *, gamma: Positive = 0.764) -> None:
        self.gamma = gamma
        self.columns = ("parameters", "tokens", "teacher_loss", "supervised_loss")
        self.constants = (
            LawConstant("c0", 1e-3, 20.0, (0.5, 2.0)),
            LawConstant("c1", 1e-3, 1e4, (1.0, 10.0)),
            LawConstant("f1", 0.01, 3.0, (0.1, 0.5)),
            LawConstant("d1", 0.2, 5.0, (1.3,)),
            coefficient("A", ("parameters", "alpha", -1), starts=(0.5, 3.0)),
            coefficient("B", ("tokens", "beta", -1), starts=(0.5, 3.0)),
            exponent("alpha", (0.3,)),
            exponent("beta", (0.3, 0.6)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c, teacher = constants, row["teacher_loss"]
        reach = (teacher / (row["supervised_loss"] * c["d1"])).log() / c["f1"]
        gap = (-c["c1"] * c["f1"] * reach.exp().log1p()).exp() / teacher ** c["c0"]
        own = c["A"] * row["parameters"] ** -c["alpha"] + c["B"] * row["tokens"] ** -c["beta"]
        return teacher + gap * own**self.gamma
