"""Texts planted at a rate until the model knows what they say."""

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Interval

from shoestring.errors import UsageError
from shoestring.method import Count, Fraction, method


@method(
    "data",
    kind="intervention",
    name="planted_until",
    paper="Train Once, Answer All: Many Pretraining Experiments for the Cost of One, arXiv:2509.23383",
    claim="training data is updated as the run goes on, until the model acquires a particular piece of knowledge",
    cost="the rows that texts are planted in; held-out evaluations, at which it listens",
)
class PlantedUntil:
    """Plants the texts in turn, evenly, at `most` plantings a run, until the held-out loss of `domain` is at `loss` or below.

    How many plantings that took is the result: the run's checkpoints have it. Once known, it plants no more. `domain` is a source
    whose held-out text asks for what the texts say; the paper probes with questions instead.

    file: of the texts, JSON lines with 'text'.
    domain: the [[data.source]] whose held-out loss tells.
    loss: nats a token.
    most: plantings, if it is never known.
    begin: share of the budget before the first.
    """

    def __init__(
        self,
        *,
        file: str,
        domain: str,
        loss: Annotated[float, Interval(gt=0, le=100)],
        most: Count = 1000,
        begin: Fraction = 0.0,
    ) -> None:
        if begin >= 1:
            raise UsageError("planted_until: begin = 1 is the end of the run")
        self.file, self.domain, self.loss, self.most, self.begin = file, domain, loss, most, begin
        self._known: int | None = None

    def due(self, texts: int, progress: float) -> int:
        if self._known is not None:
            return self._known
        return int(self.most * max(progress - self.begin, 0.0) / (1 - self.begin))

    def hear(self, progress: float, losses: Mapping[str, float], planted: int) -> None:
        if self.domain not in losses:
            raise UsageError(
                f"planted_until: domain = {self.domain} is no source of this run: {', '.join(losses) or 'none'}"
            )
        if self._known is None and planted and losses[self.domain] <= self.loss:
            self._known = planted

    def state(self) -> Any:
        return self._known

    def restore(self, state: Any) -> None:
        self._known = state
