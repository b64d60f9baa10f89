"""Watching the loss: a run that has gone wrong stops before it spends the rest of the budget."""

import math
from dataclasses import dataclass, field

from shoestring.errors import ShoestringError


class Diverged(ShoestringError):
    """The loss is not finite, or has risen far above what it was."""


@dataclass
class LossWatch:
    """Raises `Diverged` when the loss or gradient norm is not finite, or when the loss, smoothed over about twenty steps,
    stays `spike` nats above its lowest. Its state is three numbers, kept in checkpoints."""

    spike: float
    smoothed: float | None = None
    lowest: float = field(default=math.inf)
    steps: int = 0

    def look(self, step: int, loss: float, gradient_norm: float) -> None:
        for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
            if not math.isfinite(value):
                raise Diverged(f"the {name} is {value} at step {step}")
        self.steps += 1
        self.smoothed = loss if self.smoothed is None else 0.95 * self.smoothed + 0.05 * loss
        self.lowest = min(self.lowest, self.smoothed)
        if self.steps > 20 and self.smoothed > self.lowest + self.spike:
            raise Diverged(
                f"the loss has risen to {self.smoothed:.2f} at step {step}, {self.spike:g} nats above its lowest, {self.lowest:.2f}"
            )

    def state(self) -> list[float | None]:
        return [self.smoothed, None if math.isinf(self.lowest) else self.lowest, self.steps]

    def restore(self, state: list[float | None]) -> None:
        smoothed, lowest, steps = state
        self.smoothed, self.lowest, self.steps = smoothed, math.inf if lowest is None else lowest, int(steps or 0)
