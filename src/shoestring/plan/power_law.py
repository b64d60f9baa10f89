"""The power law of one column, which many laws are cases of."""

from torch import Tensor

from shoestring.plan.formula import Values, coefficient, exponent, floor
from shoestring.plan.law import Law


class PowerLaw(Law):
    """target = E + A / x^alpha, or without E; growing, A x^alpha, where `rising`.

    column: x. target: what is predicted. with_floor: whether there is an E. ladder: whose rungs are held out; x by default.
    """

    name = "power_law"
    formula = "E + A / x^alpha"

    def __init__(
        self, column: str, target: str = "loss", *, with_floor: bool = True, rising: bool = False, ladder: str = ""
    ) -> None:
        self.column, self.target, self.with_floor = column, target, with_floor
        self.sign = 1.0 if rising else -1.0
        self.columns, self.ladder = (column,), ladder or column
        self.constants = (
            *((floor(),) if with_floor else ()),
            coefficient("A", (column, "alpha", self.sign), starts=(0.05, 0.3) if with_floor else (1.0,)),
            exponent("alpha", (0.05, 0.2, 0.5, 1.0), centre=None),
        )

    def expected(self, constants: Values, row: Values) -> Tensor:
        power = constants["A"] * row[self.column] ** (self.sign * constants["alpha"])
        return constants["E"] + power if self.with_floor else power
