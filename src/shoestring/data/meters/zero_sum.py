"""How much of what is learnt on some rows is lost on others."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.data.selection import projection_gradients, row_losses
from shoestring.method import method


class ZeroSumReading(NamedTuple):
    """What a look shows.

    loss: mean over the rows, nats.
    opposition: of the rows' gradients, in [0, 1]: 0 where all point the same way, 1 where they cancel.
    interference: of the changes in the rows' losses since the look before, likewise; None at the first look.
    spent: what looking took.
    """

    loss: float
    opposition: float
    interference: float | None
    spent: Charge


@method(
    "data",
    kind="meter",
    name="zero_sum",
    paper="Loss deceleration & zero-sum learning, arXiv:2506.05447",
    claim="losses slow down abruptly early in training, as gradients of examples become opposed and changes in their losses cancel",
    cost="a forward pass over the held rows a look, told with it",
)
class ZeroSum:
    """Destructive interference D(x) = 1 - |sum_i x_i| / sum_i |x_i| over rows i: of changes in loss, and of gradients.

    meter = ZeroSum(batch.split(8)); reading = meter.look(model), every now and then in a loop of your own.

    Of gradients, D is worked out for each entry and weighted by sum_i |x_i|: 1 - sum_k |sum_i g_ik| / sum_k sum_i |g_ik|. The paper
    has examples that are tokens, and the gradients of all weights; here an example is a row, and the gradient is that in a matrix
    before the head.

    parts: rows to look at, the same each time, in micro-batches.
    """

    def __init__(self, parts: Sequence[Batch]) -> None:
        self.parts = tuple(parts)
        self._before: Tensor | None = None

    def look(self, model: LanguageModel) -> ZeroSumReading:
        """What the rows say of the model as it is. Its gradients are left as they are."""
        losses, spent = row_losses(model, self.parts)
        gradients, more = projection_gradients(model, self.parts)
        changes = None if self._before is None else losses - self._before
        self._before = losses
        return ZeroSumReading(
            float(losses.mean()),
            destructive_interference(gradients),
            None if changes is None else destructive_interference(changes),
            spent + more,
        )


def destructive_interference(values: Tensor) -> float:
    """1 - sum_k |sum_i x_ik| / sum_k sum_i |x_ik| of [n] or [n, k]; 0 where all are 0."""
    rows = values.double()
    whole = float(rows.abs().sum())
    return 1 - float(rows.sum(dim=0).abs().sum()) / whole if whole else 0.0


def deceleration(tokens: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float] | None:
    """(loss, tokens, slope after it) where a curve of losses bends in log-log space: the best pair of straight lines that meet.

    log L = log L_d - r log(t / t_d), r = r_0 before t_d and r_d after it, by least squares over every t_d among the tokens. None
    where there are fewer than 6 points, or the slope does not fall (r_d >= r_0): no deceleration is shown. What noise
    bends is not told from what is bent: give a smooth curve.
    """
    if len(tokens) < 6:
        return None
    x, y = torch.tensor(list(tokens), dtype=torch.float64).log(), torch.tensor(list(losses), dtype=torch.float64).log()
    best: tuple[float, Tensor, float] | None = None
    for place in range(2, len(tokens) - 2):
        bend = x[place]
        columns = torch.stack([torch.ones_like(x), (x - bend).clamp_max(0), (x - bend).clamp_min(0)], dim=1)
        found = torch.linalg.lstsq(columns, y[:, None]).solution[:, 0]
        error = float(((columns @ found - y) ** 2).sum())
        if best is None or error < best[0]:
            best = error, found, float(bend)
    assert best is not None
    level, before, after = best[1].tolist()
    if -after >= -before * (1 - 1e-6):
        return None
    at = torch.tensor([level, best[2]], dtype=torch.float64).exp().tolist()
    return at[0], at[1], -after
