"""What a run is judged on: held-out text, and beside it text that the model could do before; the same windows each time."""

import logging
import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from shoestring.budget.ledger import EVALUATION, Ledger
from shoestring.budget.units import show_seconds
from shoestring.contract.model import LanguageModel
from shoestring.train.evaluate import Evaluator, Heldout
from shoestring.train.speed import Speed

log = logging.getLogger(__name__)

BEFORE = 0.15
"""Of a budget in seconds, the most that judging before the first step takes."""


class JudgedTexts(NamedTuple):
    """What was found. seconds: that it took."""

    heldout: Heldout
    old: Heldout | None
    seconds: float

    @property
    def line(self) -> dict[str, Any]:
        """What a line of metrics says of it."""
        found = self.heldout
        line: dict[str, Any] = {"loss": found.loss, "bits_per_byte": found.bits_per_byte, "targets": found.targets}
        if found.domains:
            line["domains"] = dict(found.domains)
        if self.old is not None:
            line |= {"old_loss": self.old.loss, "old_bits_per_byte": self.old.bits_per_byte}
            line["old_targets"] = self.old.targets
        if found.cut_short:
            line["cut_short"] = True
        return line


class Judging:
    """Judges a model on one text, or on two.

    evaluator: on held-out text. old: on text that the model could do before; None: there is none.
    speed: of the run, which is told what judging takes. ledger: is charged.
    """

    def __init__(self, evaluator: Evaluator, old: Evaluator | None, speed: Speed, ledger: Ledger) -> None:
        self.evaluator, self.old, self.speed, self.ledger = evaluator, old, speed, ledger
        self.old_found: Heldout | None = None

    def before(self, model: LanguageModel, limit: float | None) -> JudgedTexts:
        """Both texts before the first step, as much of each as there is time for: later evaluations read those windows.

        limit: seconds of the budget; None: it has none.
        """
        assert self.old is not None
        began = self.ledger.now()
        share = math.inf if limit is None else BEFORE * limit
        new, old = (self._begun(each, model, share / 2) for each in (self.evaluator, self.old))
        took = self.ledger.now() - began
        self.speed.evaluated = self.evaluator.sequences + self.old.sequences
        self.speed.took_evaluation(took, self.speed.evaluated)
        return JudgedTexts(new, old, took)

    def _begun(self, evaluator: Evaluator, model: LanguageModel, seconds: float) -> Heldout:
        until = self.ledger.now() + seconds
        with self.ledger.clock("evaluate"):
            found = evaluator(model, lambda: self.ledger.now() >= until)
        self.ledger.charge(found.spent, EVALUATION)
        if found.cut_short:
            log.warning(f"{found.targets:,} tokens are judged, and no more: the budget is short")
            evaluator.sequences = found.sequences
        return found

    def now(self, model: LanguageModel, weights: AbstractContextManager[Any], left: float, last: bool) -> JudgedTexts:
        """A budget in seconds cuts it short where it takes too long, but for where it is set against what was found before the
        first step: that is of the same windows.

        weights: while the model has those that are judged. left: seconds of the budget. last: nothing but the checkpoint and the
        sample follow.
        """
        began = self.ledger.now()
        until = math.inf if self.old is not None else began + self.speed.evaluation_limit(left, last)
        with self.ledger.clock("evaluate"), weights:
            found = self.evaluator(model, lambda: self.ledger.now() >= until)
            old = None if self.old is None else self.old(model)
        self.old_found = old
        for each in (found, old):
            if each is not None:
                self.ledger.charge(each.spent, EVALUATION)
        took = self.ledger.now() - began
        self.speed.took_evaluation(took, found.sequences + (0 if old is None else old.sequences))
        if found.cut_short:
            log.warning(
                f"held-out evaluation cut short after {show_seconds(took)}: its loss is of {found.sequences} of "
                f"{self.evaluator.sequences} windows of held-out text"
            )
        return JudgedTexts(found, old, took)

    def state(self) -> list[int] | None:
        """What a checkpoint keeps: the windows of each text."""
        return None if self.old is None else [self.evaluator.sequences, self.old.sequences]

    def restore(self, state: list[int]) -> None:
        """Go on with the windows of a checkpoint."""
        assert self.old is not None
        self.evaluator.sequences, self.old.sequences = state
        self.speed.evaluated = sum(state)
