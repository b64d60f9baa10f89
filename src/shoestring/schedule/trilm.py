"""TriLM's schedule: linear decay whose peak drops half-way, and weight decay that ends at two thirds."""

from dataclasses import dataclass

from shoestring.method import Fraction, method
from shoestring.schedule.progress import Share, between, checked


@method(
    "schedule",
    name="trilm",
    paper="Spectra: Surprising Effectiveness of Pretraining Ternary Language Models at Scale, arXiv:2407.12327",
    claim="for ternary models, a lower loss than linear decay with either change alone or with neither",
    cost="none; the length of the run must be known",
)
@dataclass(frozen=True, kw_only=True)
class TriLM:
    """A straight line from 1 to the floor, as if from `peak` after `drop`; no weight decay from `release` on.

    Kaushal et al. (2024), arXiv:2407.12327, section 3.3, after BitNet b1.58: linear decay with warm-up and weight decay, in
    which at about half of training the peak learning rate is reduced, and at about two thirds weight decay is removed, as
    ternary weights are regularised enough. Formula:

        f(p) = floor + (1 - floor) (1 - p) (1 if p < drop else peak),    weight decay times (1 if p < release else 0)

    peak: their rates drop from 1.2e-3 to 8e-4 in the three largest models, to 0.62 to 0.69 of the first rate in the others:
    2/3 is the default. That the second line leads to the same end as the first is our reading: the paper gives both peaks
    and 'linear decay', no more. The warm-up is `with_warmup`. The peak learning rates are some 6 times those that the
    authors give float models.

    drop: the share of the budget at which the peak is lowered.
    release: the share of the budget at which weight decay ends.
    """

    drop: Share = 0.5
    peak: Share = 2 / 3
    release: Share = 2 / 3
    floor: Fraction = 0.0

    def __call__(self, progress: float) -> float:
        progress = checked(progress)
        return between(self.floor, (1 - progress) * (1.0 if progress < self.drop else self.peak))

    def weight_decay(self, progress: float) -> float:
        """The factor on weight decay: 1, and 0 from `release` on."""
        return 1.0 if checked(progress) < self.release else 0.0
