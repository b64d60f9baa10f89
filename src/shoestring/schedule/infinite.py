"""The infinite schedule: a constant rate that any number of runs can branch from, for continual pre-training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from shoestring.errors import UsageError
from shoestring.method import Decay, method
from shoestring.schedule.progress import Share, between, checked


def _inverse_sqrt(spent: float) -> float:
    """1 / sqrt(1 + 10 s), scaled to fall from 1 to 0. The timescale of 10 is the authors', in their code."""
    return 1 - (1 - 1 / math.sqrt(1 + 10 * spent)) / (1 - 1 / math.sqrt(11))


COOLDOWNS: dict[str, Callable[[float], float]] = {
    "cosine": lambda spent: (1 + math.cos(math.pi * spent)) / 2,
    "inverse-sqrt": _inverse_sqrt,
    "linear": lambda spent: 1 - spent,
}
"""Falls from 1 to 0, as functions of the spent share of the cool-down."""


@method(
    "schedule",
    name="infinite",
    paper="Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate Schedule ..., arXiv:2503.02844",
    claim="surpasses repeated cosine decay in continual pre-training, without a fixed iteration budget",
    cost="none; the length of the run must be known only when the annealing begins",
)
@dataclass(frozen=True, kw_only=True)
class Infinite:
    """A cool-down from 1 to a constant rate, that rate for as long as one likes, then an annealing to the floor.

    Singh et al. (2025), arXiv:2503.02844, after Ibrahim et al. (2024), arXiv:2403.08763. In shares of the budget, with
    eta_max = 1, eta_const = `constant`, eta_min = `floor`, and a = 1 - `anneal` the end of the constant phase:

        p <= cooldown:  f(p) = constant + (1 - constant) c(p / cooldown)
        p <= a:         f(p) = constant
        p > a:          f(p) = constant (floor / constant)^((p - a) / anneal)

    with c(s) = (1 + cos(pi s)) / 2 ('cosine', that of the 2025 paper) or 1 / sqrt(1 + 10 s) scaled to end at 0
    ('inverse-sqrt', the other of the 2024 paper) or 1 - s ('linear'). The papers count the phases in steps.

    The first phase of training begins at 'cooldown', under a warm-up (`with_warmup`, which keeps this clock: the papers'
    cool-down begins when the warm-up ends). A later phase, on new data, goes on from the checkpoint of the branch point,
    taken before the annealing, and begins at 'constant': no cool-down, and it should have no warm-up either; then its
    first factor is `constant`, on the same learning rate as before. With anneal = 0 a phase leaves only the trunk.

    constant: the factor on the learning rate between cool-down and annealing.
    cooldown: the share of the budget that the cool-down takes.
    anneal: the share of the budget that the annealing takes, at its end.
    shape: of the cool-down: 'cosine', 'inverse-sqrt' or 'linear'.
    begin: the phase that the run begins with: 'cooldown' or 'constant'.
    Raises: UsageError where the phases are longer than the budget, or the floor is above the constant rate.
    """

    constant: Share = 0.5
    cooldown: Share = 0.15
    anneal: Decay = 0.2
    floor: Share = 0.1
    shape: Literal["cosine", "inverse-sqrt", "linear"] = "cosine"
    begin: Literal["cooldown", "constant"] = "cooldown"

    def __post_init__(self) -> None:
        if self.begin == "cooldown" and self.cooldown + self.anneal > 1:
            raise UsageError(f"infinite: cooldown = {self.cooldown:g} and anneal = {self.anneal:g} come to more than 1")
        if self.floor > self.constant:
            raise UsageError(f"infinite: floor = {self.floor:g} is above constant = {self.constant:g}")

    @property
    def milestones(self) -> tuple[float, ...]:
        """The branch point: where the annealing begins, whose checkpoint a later phase goes on from."""
        return (1 - self.anneal,)

    def __call__(self, progress: float) -> float:
        progress = checked(progress)
        if self.begin == "cooldown" and progress < self.cooldown:
            return between(self.constant, COOLDOWNS[self.shape](progress / self.cooldown))
        if progress <= 1 - self.anneal:
            return self.constant
        left = (1 - progress) / self.anneal
        return float(self.constant**left * self.floor ** (1 - left))  # exact at both ends
