"""The law of repeated data: tokens seen again and parameters beyond what the data can fill are worth less and less."""

from typing import ClassVar

import torch
from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import LawConstant, Published, Values, coefficient, exponent, floor
from shoestring.plan.law import Law


@method(
    "plan",
    kind="law",
    name="data_constrained",
    paper="Scaling Data-Constrained Language Models, arXiv:2305.16264",
    claim="up to 4 epochs of repeated data change the loss negligibly; with more repetition the value of compute decays to zero",
    cost="a grid of small runs, some of which pass over their data several times",
)
class DataConstrained(Law):
    """Chinchilla's law of effective parameters N' and effective tokens D': L = E + A / N'^alpha + B / D'^alpha.

    Muennighoff et al. (2023), arXiv:2305.16264. U: unique tokens. R_D = D / U - 1 passes beyond the first, and

        D' = U + U R_D* (1 - exp(-R_D / R_D*))
        N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)),    R_N = N / U_N - 1

    where U_N is the size that U is best for, at most N: U_N = min(U (A / B)^(1 / alpha), N). One exponent serves both, as there.
    R_D*: passes after which repeated tokens have lost 1 - 1/e of their worth. L, E: nats per token.
    Differs: all constants are fitted at once; the paper first fits A, B, E and alpha to runs of one pass.
    """

    name = "data_constrained"
    formula = "L = E + A / N'^alpha + B / D'^alpha"
    published: ClassVar[Published] = {
        "muennighoff": {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "R_D": 15.387756, "R_N": 5.309743},
    }

    def __init__(self) -> None:
        self.columns = ("parameters", "tokens", "unique")
        self.constants = (
            floor(),
            coefficient("A", ("parameters", "alpha", -1)),
            coefficient("B", ("tokens", "alpha", -1)),
            exponent("alpha", (0.2, 0.5)),
            LawConstant("R_D", 0.1, 1000.0, (3.0, 15.0)),
            LawConstant("R_N", 0.1, 1000.0, (5.0,)),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        c, size, unique = constants, row["parameters"], row["unique"]
        tokens = _worth(unique, row["tokens"] / unique - 1, c["R_D"])
        fitting = torch.minimum(unique * (c["A"] / c["B"]) ** (1 / c["alpha"]), size)
        parameters = _worth(fitting, size / fitting - 1, c["R_N"])
        return c["E"] + c["A"] * parameters ** -c["alpha"] + c["B"] * tokens ** -c["alpha"]


def _worth(first: Tensor, more: Tensor, half: Tensor) -> Tensor:
    """What `first`, and `more` times as much again, are worth together."""
    return first * (1 + half * (1 - torch.exp(-more.clamp(min=0) / half)))
