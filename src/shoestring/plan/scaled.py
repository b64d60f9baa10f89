"""A formula on one table: constants as variables of order one, whatever the units of the table."""

import math
from collections.abc import Mapping, Sequence
from copy import copy

import torch
from torch import Tensor

from shoestring.errors import UsageError
from shoestring.plan.fit import Box
from shoestring.plan.formula import Formula, LawConstant, Values
from shoestring.plan.runs_table import RunsTable

FARTHEST = 600.0
"""Bound of a coefficient's logarithm: beyond it the coefficient is no number of 64 bits."""


class Scaled:
    """A positive constant is the exponential of its variable times its unit. A coefficient's unit holds the powers that it stands
    before, at the middles of the columns. So a change of an exponent turns its term about the middle of the runs, and the
    search does not run along a long narrow valley.

    rows: as `Formula.prepare` made them.
    """

    def __init__(self, formula: Formula, rows: RunsTable) -> None:
        self.formula, self.rows = formula, rows
        self.row = {name: torch.as_tensor(rows.column(name), dtype=torch.float64) for name in formula.columns}
        target = torch.as_tensor(rows.column(formula.target), dtype=torch.float64)
        if formula.scale == "log" and not bool((target > 0).all()):
            raise UsageError(f"the law '{formula.name}' predicts a {formula.target} above 0, and a run has none")
        self.targets = target.log() if formula.scale == "log" else target
        self.middle = max(float(target.abs().median()), 1e-300)
        self.lowest = float(target.min())
        self.middles = self.places = {
            name: float(column.clamp(min=1e-300).log().mean().exp()) for name, column in self.row.items()
        }
        self.low = self._variables([constant.low for constant in formula.constants])
        self.high = self._variables([constant.high for constant in formula.constants])
        self.starts = torch.stack([self._variables(start) for start in formula.starts()])

    def natural(self, variables: Tensor) -> tuple["Scaled", Tensor]:
        """(the same with the logarithms of coefficients themselves as variables, these variables [p] as its own).

        An interval of a coefficient is asked for in this form; the search is easier in the other.
        """
        other, found = copy(self), variables.clone()
        other.middle, other.middles = 1.0, dict.fromkeys(self.middles, 1.0)
        other.low, other.high = self.low.clone(), self.high.clone()
        constants = self.constants(variables)
        for at, constant in enumerate(self.formula.constants):
            if constant.unit == "coefficient":
                found[at] = constants[constant.name].log()
                other.low[at], other.high[at] = -FARTHEST, FARTHEST
        return other, found

    def _variables(self, values: Sequence[float]) -> Tensor:
        """The variables of values that are in their units."""
        pairs = zip(self.formula.constants, values, strict=True)
        return torch.tensor([math.log(v) if c.positive else v for c, v in pairs], dtype=torch.float64)

    def box(self, tightness: float) -> Box:
        """The bounds, and the priors of a regularised fit.

        tightness: what a prior of one standard deviation weighs, in units of a residual of delta; 0: no priors.
        """
        priors = [constant.prior for constant in self.formula.constants]
        centre = torch.tensor([prior[0] if prior else 0.0 for prior in priors], dtype=torch.float64)
        tight = torch.tensor([tightness / prior[1] if prior else 0.0 for prior in priors], dtype=torch.float64)
        return Box(self.low, self.high, centre, tight)

    def constants(self, variables: Tensor) -> dict[str, Tensor]:
        """Variables [..., p] as named constants [...]."""
        found: dict[str, Tensor] = {}
        coefficients = []
        for at, constant in enumerate(self.formula.constants):
            variable = variables[..., at]
            if constant.unit == "coefficient":
                coefficients.append((constant, variable))
            elif constant.positive:
                found[constant.name] = variable.exp() * self._unit(constant)
            else:
                found[constant.name] = variable
        for constant, variable in coefficients:
            power = variable + math.log(self.middle)
            for column, name, sign in constant.of:
                power = power - sign * found[name] * math.log(self.middles[column])
            found[constant.name] = power.exp()
        return found

    def _unit(self, constant: LawConstant) -> float:
        if constant.unit == "column":
            return self.places[constant.of[0][0]]
        return self.lowest if constant.unit == "lowest" else 1.0

    def expected(self, variables: Tensor, row: Values | None = None) -> Tensor:
        """Variables [problems, 1 or n, p] -> the target [problems, n], on the formula's scale. row: of other runs."""
        value = self.formula.expected(self.constants(variables), self.row if row is None else row)
        return value.log() if self.formula.scale == "log" else value

    def named(self, variables: Tensor) -> dict[str, float]:
        """Variables [p] as named constants."""
        return {name: float(value) for name, value in self.constants(variables).items()}

    def columns(self, row: Mapping[str, float]) -> dict[str, Tensor]:
        """One run to predict, as columns [1]. Raises: UsageError where a column is missing."""
        missing = [name for name in self.formula.columns if not math.isfinite(row.get(name, math.nan))]
        if missing:
            raise UsageError(f"the law '{self.formula.name}' needs {', '.join(missing)} of a run to predict it")
        return {name: torch.tensor([float(row[name])], dtype=torch.float64) for name in self.formula.columns}
