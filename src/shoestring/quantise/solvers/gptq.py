"""Weights rounded one column after another, the rest making up for each error."""

import torch
from torch import Tensor

from shoestring.errors import ShoestringError
from shoestring.method import Count, Epsilon, method
from shoestring.quantise.format import CodeFormat, Encoded, checked

TRIES = 6
"""Of a damping ten times as large each, where a Hessian cannot be factored."""


@method(
    "quantise",
    kind="solver",
    name="gptq",
    paper="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv:2210.17323",
    claim="models of 175 B parameters to 3 or 4 bits in about four GPU hours, with little loss of accuracy",
    cost="for each matrix in^3 operations and out in^2; the second moments of what it reads",
)
class GPTQ:
    """Round a matrix column by column; what a rounding spoils, the columns that are not rounded yet make up for.

    Frantar et al. (2022), arXiv:2210.17323. With H = X X^T / n + damping mean(diag H) I and U the upper Cholesky factor of H^-1,
    for each column j in order:

        q_j = round(w_j),    e = (w_j - q_j) / U_jj,    w_k <- w_k - e U_jk for k > j

    W [out, in], H and U [in, in]. The updates of columns beyond a block are made once a block.

    The parameters of a group are fitted when its first column is reached, to the weights as they are then; with `ordered`, to the
    weights as they were, and columns go in order of falling H_jj (as the authors' code has as an option). Columns that were always
    0 in the text are rounded to the nearest.

    damping: in proportion to the mean of H's diagonal.
    ordered: the columns that matter most first.
    block: columns between two updates of the rest.
    """

    reads = True

    def __init__(self, *, damping: Epsilon = 0.01, ordered: bool = True, block: Count = 128) -> None:
        self.damping, self.ordered, self.block = damping, ordered, block

    @torch.no_grad()
    def __call__(self, weight: Tensor, format: CodeFormat, hessian: Tensor | None) -> Encoded:
        """As `parts.Solver`. Without a Hessian: to the nearest."""
        work = checked(weight).clone()
        form = format.of(work)
        if hessian is None:
            return form.encode(work)
        columns, group = work.shape[1], form.group_of(work.shape[1])
        moments = hessian.double()
        order = moments.diagonal().argsort(descending=True, stable=True) if self.ordered else torch.arange(columns)
        upper = self._factor(moments[order][:, order]).float()
        squares = moments.diagonal().float().clamp_min(0)
        importance = squares if bool(squares.any()) else None
        fitted = form.fit_all(work, importance)
        work = work[:, order]
        codes = torch.empty(work.shape, dtype=torch.uint8)
        for first in range(0, columns, self.block):
            last = min(first + self.block, columns)
            errors = torch.empty(len(work), last - first)
            for place in range(first, last):
                column = int(order[place])
                if not self.ordered and column % group == 0:
                    self._refit(form, fitted, work, column, group, importance)
                parameters = {name: one[:, column // group] for name, one in fitted.items()}
                own = work[:, place : place + 1]
                chosen = form.code(own, parameters, column % group)
                codes[:, column] = chosen[:, 0]
                error = (own - form.value(chosen, parameters, column % group))[:, 0] / upper[place, place]
                work[:, place:last] -= error[:, None] * upper[place, place:last]
                errors[:, place - first] = error
            work[:, last:] -= errors @ upper[first:last, last:]
        return form.encoded(codes, fitted)

    def _refit(
        self,
        form: CodeFormat,
        fitted: dict[str, Tensor],
        work: Tensor,
        column: int,
        group: int,
        importance: Tensor | None,
    ) -> None:
        """The parameters of a group, to the weights as they are."""
        end = min(column + group, work.shape[1])
        weights = None if importance is None else importance[None, column:end].expand(len(work), -1)
        for name, one in form.fit(work[:, column:end], weights).items():
            fitted[name][:, column // group] = one

    def _factor(self, moments: Tensor) -> Tensor:
        """U, float64, upper. Raises: ShoestringError where no damping within reason makes H positive."""
        mean = float(moments.diagonal().mean())
        moments = moments + torch.diag((moments.diagonal() <= 0).double() * max(mean, 1.0))
        for damping in (self.damping * 10**power for power in range(TRIES)):
            added = moments + torch.eye(len(moments), dtype=torch.float64) * (damping * mean + 1e-12)
            lower, failed = torch.linalg.cholesky_ex(added)
            if not int(failed):
                upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
                if not int(failed) and bool(upper.isfinite().all()):
                    return upper
        raise ShoestringError("the second moments of what a layer reads cannot be factored: are they finite?")
