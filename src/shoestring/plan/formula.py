"""A formula of columns of a table of runs, with named constants: what a law declares of itself."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from shoestring.errors import UsageError, did_you_mean
from shoestring.plan.runs_table import RunsTable

Values = Mapping[str, Tensor]
"""Constants [problems, 1 or n] or columns [n], by name."""

Published = Mapping[str, Mapping[str, float]]
"""Fits that papers print, by name: constants by name."""


@dataclass(frozen=True)
class LawConstant:
    """One constant of a law.

    name: as in the formula.
    low, high: where it may lie, in its unit.
    starts: where the search for it starts, in its unit.
    positive: whether it is searched for on a logarithmic scale.
    unit: what it is a share of. '': nothing, it is a plain number. 'lowest': the least of the target. 'coefficient': the middle
        of the target, once the powers that it stands before are at the middles of their columns. 'column': the middle of a column.
    of: for a coefficient, (column, exponent's name, sign) of those powers; A / N^alpha is ('parameters', 'alpha', -1). For a
    share of
        a column's middle, ('parameters', '', 0).
    prior: (centre, standard deviation) of its logarithm, or of itself where it is not positive; None: nothing is known before.
    """

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    positive: bool = True
    unit: Literal["", "lowest", "coefficient", "column"] = ""
    of: tuple[tuple[str, str, float], ...] = ()
    prior: tuple[float, float] | None = None


def coefficient(
    name: str,
    *of: tuple[str, str, float],
    starts: tuple[float, ...] = (0.05, 0.3),
    low: float = 1e-9,
    high: float = 1e4,
) -> LawConstant:
    """A positive factor before powers of columns.

    of: those powers, as in `LawConstant`.
    starts, low, high: its term as a share of the middle of the target, at the middles of the columns. So they suit any scale.
    """
    return LawConstant(name, low, high, starts, unit="coefficient", of=of)


def exponent(
    name: str,
    starts: tuple[float, ...] = (0.2, 0.5, 1.0),
    *,
    low: float = 1e-3,
    high: float = 4.0,
    centre: float | None = 0.35,
) -> LawConstant:
    """A positive exponent.

    high: a steeper term is gone after a doubling, and no data tell how steep it is.
    centre: where published fits have it, to within a factor of e^0.5, for a regularised fit; None: nowhere. 0.34 and 0.28
        (arXiv:2203.15556), 0.35 and 0.37 (its replication, arXiv:2404.10102), 0.35 (arXiv:2305.16264).
    """
    return LawConstant(name, low, high, starts, prior=None if centre is None else (math.log(centre), 0.5))


def place(name: str, column: str, starts: tuple[float, ...], *, low: float = 1e-4, high: float = 1e4) -> LawConstant:
    """A positive place on a column, as a share of the column's middle."""
    return LawConstant(name, low, high, starts, unit="column", of=((column, "", 0.0),))


def floor(name: str = "E", starts: tuple[float, ...] = (0.4, 0.8), *, low: float = 1e-3) -> LawConstant:
    """What remains for endless size and data, as a share of the least of the target.

    Its prior is half of the least, to within a factor of e^0.3: published values are near 1.7 nats (arXiv:2203.15556), and runs
    that are cheap enough to learn from end near 3.4.
    """
    return LawConstant(name, low, 1.0, starts, unit="lowest", prior=(math.log(0.5), 0.3))


def signed(name: str, low: float, high: float, starts: tuple[float, ...]) -> LawConstant:
    """A number that may be negative."""
    return LawConstant(name, low, high, starts, positive=False)


class Formula(ABC):
    """A formula with constants. A subclass sets these attributes and `expected`.

    name: of its card. formula: as one line. columns: that it reads. constants: in order. target: what it predicts.
    scale: on which residuals are taken and intervals lie; 'log' for a target above 0. ladder: the column whose rungs are
    held out, in turn, from the top. published: fits that papers print, by name.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    columns: tuple[str, ...]
    constants: tuple[LawConstant, ...]
    target: str = "loss"
    scale: Literal["log", "linear"] = "log"
    ladder: str = "compute"
    published: ClassVar[Published] = {}

    @abstractmethod
    def expected(self, constants: Values, row: Values) -> Tensor:
        """The target [problems, n] in its own unit. Each value depends on its own run and problem alone."""

    def prepare(self, table: RunsTable) -> RunsTable:
        """The rows that the formula is fitted to.

        Most laws take the runs themselves. Laws of minima, such as the best size for some compute, find the minima here.
        Raises: UsageError where a column or a number is missing.
        """
        return table.with_columns((*self.columns, self.target), f"the law '{self.name}'")

    def starts(self) -> Sequence[tuple[float, ...]]:
        """Where the search starts: the grid of all constants' starts."""
        return list(itertools.product(*(constant.starts for constant in self.constants)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(constant.name for constant in self.constants)

    def value(self, constants: Mapping[str, float], row: Mapping[str, float]) -> float:
        """The target of one row by given constants. Raises: UsageError where a column is missing."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise UsageError(f"the law '{self.name}' needs {', '.join(missing)} of a run to predict it")
        known = {name: torch.tensor([[float(value)]], dtype=torch.float64) for name, value in constants.items()}
        columns = {name: torch.tensor([float(row[name])], dtype=torch.float64) for name in self.columns}
        return float(self.expected(known, columns))

    def constants_of(self, published: str) -> Mapping[str, float]:
        """A published fit. Raises: UsageError where the law has none of that name."""
        if published not in self.published:
            raise UsageError(
                f"the law '{self.name}' has no published fit '{published}': {did_you_mean(published, self.published)}"
            )
        return self.published[published]
