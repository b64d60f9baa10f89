"""Quantised from the first step."""

from dataclasses import dataclass

from shoestring.method import method
from shoestring.schedule.progress import Schedule
from shoestring.schedule.quantise.rule import Extent


@method(
    "schedule",
    kind="quantise",
    name="always",
    paper="Spectra: Surprising Effectiveness of Pretraining Ternary Language Models at Scale, arXiv:2407.12327",
    claim="the baseline, and how TriLM and BitNet b1.58 are trained",
    cost="none",
)
@dataclass(frozen=True, kw_only=True)
class Always:
    """Weights are quantised from the first step to the last. Formula: start = 0."""

    def start(self, extent: Extent) -> float:
        return 0.0

    def joined(self, schedule: Schedule, start: float) -> Schedule:
        return schedule
