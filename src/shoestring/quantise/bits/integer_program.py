"""Bits by an integer programme over measured sensitivities."""

import numpy as np

from shoestring.errors import UsageError
from shoestring.method import Positive, method
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.parts import Bits


@method(
    "quantise",
    kind="bits",
    name="integer_program",
    paper="HAWQV3: Dyadic Neural Network Quantization, arXiv:2011.10680",
    claim="an integer linear programme balances the loss of accuracy with size, operations or time in less than a second",
    cost="a reading of about 500 tokens for each matrix, and the programme's seconds",
)
class IntegerProgram(Bits):
    """The widths whose losses add up to the least within the target.

    With x_mb in {0, 1}, whether matrix m has b bits, s_mb what that alone costs (`BitAllocation.loss`) and c_mb what it takes:

        minimise sum s_mb x_mb,    sum_b x_mb = 1 for each m,    sum c_mb x_mb <= limit

    Yao et al. (2021), arXiv:2011.10680, have such a programme with Hessians' traces for s. Here s is measured: the loss with
    matrix m alone rounded to the smallest width, and at others in proportion to the squared error of its weights. c is bits,
    bytes or measured seconds.

    seconds: that the programme may take; its best until then is taken.
    """

    reads = True

    def __init__(self, *, seconds: Positive = 20.0) -> None:
        self.seconds = seconds

    def choose(self, allocation: BitAllocation) -> list[int]:
        """As `Bits.choose`."""
        return cheapest(allocation, np.array(allocation.sensitivities()), self.seconds)


def cheapest(allocation: BitAllocation, losses: np.ndarray, seconds: float) -> list[int]:
    """The widths of the least sum of `losses` [matrices, widths] within the limit. Raises: UsageError where none is found."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag, csr_matrix

    costs = np.array(allocation.costs)
    count, widths = costs.shape
    scale = max(float(losses.max()), 1e-30)
    one_each = block_diag([np.ones((1, widths))] * count, format="csr")
    within = csr_matrix(costs.reshape(1, -1) / allocation.limit)
    found = milp(
        (losses / scale).reshape(-1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(within, -np.inf, 1.0)],
        integrality=np.ones(count * widths),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds},
    )
    if found.x is None:
        raise UsageError(
            f"no choice of bits was found within {allocation.limit:,.6g} {allocation.unit}: {found.message}"
        )
    places = found.x.reshape(count, widths).argmax(1)
    chosen = [allocation.widths[int(place)] for place in places]
    return chosen if allocation.fits(chosen) else _lowered(allocation, chosen, losses)


def _lowered(allocation: BitAllocation, chosen: list[int], losses: np.ndarray) -> list[int]:
    """A choice that is over the limit by a rounding, with the matrix that loses the least one width down until it is within."""
    chosen = list(chosen)
    while not allocation.fits(chosen):
        ways = []
        for place, bits in enumerate(chosen):
            at = allocation.widths.index(bits)
            if at:
                ways.append((float(losses[place, at - 1] - losses[place, at]), place, allocation.widths[at - 1]))
        _, place, bits = min(ways)
        chosen[place] = bits
    return chosen
