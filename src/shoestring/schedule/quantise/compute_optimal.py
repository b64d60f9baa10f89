"""The share of a run to train with quantised weights, from its tokens per byte of parameters."""

import math
from dataclasses import dataclass

from shoestring.errors import UsageError
from shoestring.method import Positive, Tokens, method
from shoestring.schedule.progress import Schedule, Share
from shoestring.schedule.quantise.rule import Extent, fused

RATE = 6.7297
"""The one constant of the rule, as the authors fitted it."""


@method(
    "schedule",
    kind="quantise",
    name="compute_optimal",
    paper="Compute-Optimal Quantization-Aware Training, arXiv:2509.22935",
    claim="the best share of quantised training grows with the compute, contrary to earlier findings (`late`); "
    "decay fused with it saves compute; models of 86 M to 2.2 B",
    cost="none",
)
@dataclass(frozen=True, kw_only=True)
class ComputeOptimal:
    """Full precision first, then a quantised share of the budget that grows with the tokens per byte of parameters.

    Dremov, Grangier, Katharopoulos & Hannun (2025), arXiv:2509.22935, against the fixed share of `late`. For D tokens, N
    parameters and B bits a weight:

        S = D / (N B / 8),    f = exp(log S - a / log S) / S = exp(-a / log S),    start = 1 - f

    with a = 6.7297, fitted to models of 86 M to 2.2 B parameters, 2.3 B to 1.4 T tokens and 1, 2, 4 and 6 bits; ternary
    weights, log2(3) bits, lie between. fused: the learning rate of a 'wsd' schedule is constant until `start` and decays from
    there to the end, instead of decaying in full precision first.

    least: the smallest share, ours. The smallest of those models with the fewest tokens has 36 a byte at 6 bits, where the
    rule says 0.15; below that it is an extrapolation, which falls to nothing at 1. tokens: D; 0 is that of the plan or the
    budget. N counts all parameters, also those that are not quantised (our reading). Differs: the authors count tokens, and
    here it is the share of whatever the budget is of.

    rate: a of the formula; more of it quantises a smaller share.
    """

    fused: bool = True
    least: Share = 0.1
    tokens: Tokens = 0.0
    rate: Positive = RATE

    def start(self, extent: Extent) -> float:
        tokens = self.tokens or extent.tokens
        if not tokens:
            raise UsageError(
                "quantise = compute_optimal must know the tokens of the run: give a budget in tokens, or quantise.tokens"
            )
        return 1 - max(self.least, self.fraction(tokens / (extent.parameters * extent.bits / 8)))

    def fraction(self, tokens_per_byte: float) -> float:
        """f, the share of the tokens that is quantised; 0 where there is no more than a token a byte."""
        return math.exp(-self.rate / math.log(tokens_per_byte)) if tokens_per_byte > 1 else 0.0

    def joined(self, schedule: Schedule, start: float) -> Schedule:
        return fused(schedule, start) if self.fused else schedule
