"""Kaplan's power laws of size, data, compute and steps."""

from typing import ClassVar, Literal

from torch import Tensor

from shoestring.method import method
from shoestring.plan.formula import Published, Values, coefficient, exponent
from shoestring.plan.law import Law

PF_DAY = 8.64e19
"""FLOPs of a petaflop/s for a day."""


@method(
    "plan",
    kind="law",
    name="kaplan",
    paper="Scaling Laws for Neural Language Models, arXiv:2001.08361",
    claim="loss is a power law of model size, data and compute, over more than seven orders of magnitude",
    cost="a ladder of small runs",
)
class Kaplan(Law):
    """Power laws without a floor.

    Kaplan et al. (2020), arXiv:2001.08361, equations 1.1 to 1.6. N: parameters without embeddings. D: tokens of the data set,
    trained on until the held-out loss rises. S: steps. L: nats per token.

        'size':       L = (N_c / N)^alpha
        'data':       L = (D_c / D)^beta
        'compute':    L = (C_c / C)^alpha
        'size_data':  L = ((N_c / N)^(alpha / beta) + D_c / D)^beta
        'size_steps': L = (N_c / N)^alpha + (S_c / S)^beta

    Differs: constants are A = N_c^alpha (or C_c^alpha) and B = D_c^beta (or S_c^beta), which the runs determine better than N_c.

    form: which of them.
    """

    name = "kaplan"
    published: ClassVar[Published] = {
        "size": {"A": 8.8e13**0.076, "alpha": 0.076},
        "data": {"B": 5.4e13**0.095, "beta": 0.095},
        "compute": {"A": (3.1e8 * PF_DAY) ** 0.050, "alpha": 0.050},
        "size_data": {"A": 6.4e13**0.076, "alpha": 0.076, "B": 1.8e13**0.103, "beta": 0.103},
        "size_steps": {"A": 6.5e13**0.077, "alpha": 0.077, "B": 2.1e3**0.76, "beta": 0.76},
    }
    formula = "L = ((A / N^alpha)^(1 / beta) + (B / D^beta)^(1 / beta))^beta, or one term of it"

    def __init__(self, *, form: Literal["size", "data", "compute", "size_data", "size_steps"] = "size_data") -> None:
        self.form = form
        first = {"compute": "compute"}.get(form, "body")
        second = {"size_steps": "steps"}.get(form, "tokens")
        both = form in ("size_data", "size_steps")
        shares = (0.3, 0.7) if both else (1.0,)
        terms = []
        if form != "data":
            terms.append((first, coefficient("A", (first, "alpha", -1), starts=shares), exponent("alpha", (0.08, 0.3))))
        if form == "data" or both:
            terms.append((second, coefficient("B", (second, "beta", -1), starts=shares), exponent("beta", (0.1, 0.5))))
        self.columns = tuple(column for column, _, _ in terms)
        self.constants = tuple(constant for _, factor, power in terms for constant in (factor, power))

    def expected(self, constants: Values, row: Values) -> Tensor:
        c = constants
        terms = [
            c[factor] * row[column] ** -c[power]
            for factor, power in (("A", "alpha"), ("B", "beta"))
            if factor in c
            for column in [self.columns[0] if factor == "A" else self.columns[-1]]
        ]
        if len(terms) == 1:
            return terms[0]
        if self.form == "size_steps":
            return terms[0] + terms[1]
        return (terms[0] ** (1 / c["beta"]) + terms[1] ** (1 / c["beta"])) ** c["beta"]
