"""Quantised over a last share of the budget."""

from dataclasses import dataclass

from shoestring.method import method
from shoestring.schedule.progress import Schedule, Share
from shoestring.schedule.quantise.rule import Extent, fused


@method(
    "schedule",
    kind="quantise",
    name="late",
    paper="ParetoQ: Improving Scaling Laws in Extremely Low-bit LLM Quantization, arXiv:2502.02631",
    claim="most of the budget in full precision and about a tenth quantised is nearly best, above quantisation from "
    "scratch; `compute_optimal` contradicts a fixed share",
    cost="none",
)
@dataclass(frozen=True, kw_only=True)
class Late:
    """Full precision first, quantised over the last `fraction` of the budget.

    Liu et al. (2025), arXiv:2502.02631, who find a tenth nearly best. Dremov et al. (2025), arXiv:2509.22935, contradict a
    fixed share: theirs grows with the compute (`compute_optimal`). Formula: start = 1 - fraction. fused: the decay of a 'wsd'
    schedule takes just that fraction (see `compute_optimal`); ours, off by default.

    fraction: the share of the budget that is quantised, at its end.
    """

    fraction: Share = 0.1
    fused: bool = False

    def start(self, extent: Extent) -> float:
        return 1 - self.fraction

    def joined(self, schedule: Schedule, start: float) -> Schedule:
        return fused(schedule, start) if self.fused else schedule
