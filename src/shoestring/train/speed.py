"""How fast a run goes now, by its own steps, and what it keeps back of a budget in seconds by that."""

import math
from collections import deque
from statistics import median

from shoestring.plan.rules import EVALUATING, FORWARD_SHARE

OVERRUN = 0.01
"""Share of a budget in seconds by which a last step or the last evaluation may overrun it: both are checked before they begin
and, the evaluation, as it goes; what follows them takes a little too."""

RECENT = 5
"""Steps whose median tells the speed: enough to overlook a single slow one, few enough to follow a machine that gets busy."""


class Speed:
    """Measured as the run goes; the first step of a process, in which torch sets itself up, tells nothing.

    limit: the budget in seconds, None where it has none.
    evaluated: sequences of a whole evaluation.
    sampling, saving: seconds that a sample and a checkpoint take, as far as known before.
    """

    def __init__(self, limit: float | None, *, evaluated: int, sampling: float, saving: float) -> None:
        self.limit, self.evaluated, self.sampling, self.saving = limit, evaluated, sampling, saving
        self.forward_share = FORWARD_SHARE
        self.started = False
        self._before: float | None = None
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._per_sequence: deque[float] = deque(maxlen=RECENT)

    def took_step(self, seconds: float, sequences: int) -> None:
        if self.started:
            self._steps.append(seconds)
            self._per_sequence.append(seconds / sequences)
            if self._before is not None:
                self.forward_share, self._before = self._before / self._per_sequence[0], None
        self.started = True

    def took_evaluation(self, seconds: float, sequences: int) -> None:
        """sequences: those that were evaluated, where it was cut short. Before the first step it is kept, to be set beside one."""
        if not sequences:
            return
        if self.known:
            self.forward_share = seconds / sequences / median(self._per_sequence)
        else:
            self._before = seconds / sequences

    def took_checkpoint(self, seconds: float) -> None:
        self.saving = 1.2 * seconds  # the last one may find a busier disk

    @property
    def known(self) -> bool:
        """Whether the speed of a step is known."""
        return bool(self._steps)

    @property
    def evaluation(self) -> float:
        """Seconds that a whole evaluation would take now; 0 while that is not known."""
        return self.forward_share * median(self._per_sequence) * self.evaluated if self.known else 0.0

    @property
    def reserve(self) -> float:
        """Seconds kept back for what follows the last step."""
        return self.evaluation + self.sampling + self.saving

    def steps_left(self, seconds: float) -> float:
        """Steps that `seconds`, of which the reserve is taken off, are enough for; infinite while the speed is not known.

        A step that would cross the end by more than half of itself, or by more than `OVERRUN`, is not begun.
        """
        if not self.known:
            return math.inf
        step = max(median(self._steps), 1e-9)
        over = 0.5 if self.limit is None else min(0.5, OVERRUN * self.limit / step)
        return max(0, math.floor(seconds / step + over))

    def may_evaluate(self, left: float) -> bool:
        """Whether an evaluation on the way fits: it takes a small share of the budget, and `left`, the seconds before the
        reserve, hold it and a step after it."""
        if self.limit is None:
            return True
        return self.evaluation <= EVALUATING * self.limit and self.steps_left(left - self.evaluation) >= 1

    def evaluation_limit(self, left: float, last: bool) -> float:
        """Seconds after which an evaluation is cut short; infinite where nothing limits it.

        left: of the budget, all told.

        The last one may take what is kept back for the sample, which makes do with what remains.
        """
        if self.limit is None or not self.known:
            return math.inf
        if last:
            return max(left - self.saving + OVERRUN * self.limit, 0.0)
        return min(EVALUATING * self.limit, max(left - self.reserve, 0.0))
