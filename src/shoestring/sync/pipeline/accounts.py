"""What a pipeline's tokens and seconds went into."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Accounts:
    """tokens_seen: given out to be trained on, again when a step is repeated.
    tokens_discarded: of attempts that were given up, and of steps that were rolled back. Between steps tokens_seen =
    tokens_useful + tokens_discarded.
    seconds: of 'useful' and 'discarded' steps, of 'recovery', and of 'upkeep' (copies and checkpoints).
    failures: processes of stages that were lost.
    steps: tokens and seconds of each step that stands.
    """

    tokens_seen: int = 0
    tokens_discarded: int = 0
    failures: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: list[tuple[int, float]] = field(default_factory=list)

    @property
    def tokens_useful(self) -> int:
        """Tokens of the steps that stand."""
        return sum(tokens for tokens, _ in self.steps)

    @property
    def goodput(self) -> float:
        """Useful tokens as a share of all that were given out; 1 before the first."""
        return self.tokens_useful / self.tokens_seen if self.tokens_seen else 1.0

    def stand(self, tokens: int, seconds: float) -> None:
        """A step was taken."""
        self.steps.append((tokens, seconds))
        self.seconds["useful"] += seconds

    def discard(self, tokens: int, seconds: float) -> None:
        """An attempt at a step was given up."""
        self.tokens_discarded += tokens
        self.seconds["discarded"] += seconds

    def roll_back(self, step: int) -> None:
        """The steps from `step` on no longer stand."""
        for tokens, seconds in self.steps[step:]:
            self.discard(tokens, seconds)
            self.seconds["useful"] -= seconds
        del self.steps[step:]
