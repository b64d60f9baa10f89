"""An answer in the making: one row of an engine."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.decode.draws import draw
from shoestring.decode.request import AnswerSpent, Request, Stop
from shoestring.decode.sampling import Constraint


@dataclass(eq=False)
class Row:
    """One answer to a request.

    number: of the row in its engine. request, ticket, sample: what it answers, and which of the answers it is.
    tokens: the prompt and what was written.
    held: how many of them are read and kept.
    deepest: how many were ever read. What lies below and is not held was given up, and is read again.
    running: whether it has a place in the store.
    arrived: time of its submission, on the monotonic clock.
    hidden: [width], what the model made of the last token that it read; None where it was not asked for.
    stop: why it ended.
    parts: other answers to the same prompt, which begin once it is read.
    constraint: what the answer may be, with the tokens so far taken in.
    charge, seconds: what it took so far, the seconds by cause. drafting: what of `charge` the drafter took.
    times: of its tokens, on the monotonic clock.
    changed: tokens of drafts that stayed though the model chose another.
    memory: what a mixture remembers of it.
    asked, answered: how often each token stands in the prompt (where it matters) and in the answer.
    seen: when its seconds were last noted.
    """

    number: int
    ticket: int
    request: Request
    sample: int
    tokens: list[int]
    arrived: float
    held: int = 0
    deepest: int = 0
    running: bool = False
    hidden: Tensor | None = None
    stop: Stop | None = None
    parts: int = 0
    constraint: Constraint | None = None
    charge: Charge = NOTHING
    drafting: Charge = NOTHING
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    times: list[float] = field(default_factory=list)
    changed: int = 0
    memory: object = None
    asked: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    seen: float = 0.0

    def __post_init__(self) -> None:
        self.seen = self.seen or self.arrived

    @property
    def unread(self) -> int:
        """Tokens that are still to be read before the next can be chosen; 1 while decoding."""
        return len(self.tokens) - self.held

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def decoding(self) -> bool:
        """Whether only the token that was chosen last is still to be read."""
        return self.running and self.unread == 1 and self.written > 0

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.request.max_new_tokens - self.written

    @property
    def deadline(self) -> float:
        """When its seconds are over, on the monotonic clock."""
        return self.arrived + self.request.seconds

    def draw(self, position: int, purpose: int = 0) -> float:
        """The number in [0, 1) that chooses the token at a position of the text."""
        return draw(self.request.sampling.seed, self.sample, position, purpose)

    def spend(self, cause: str, seconds: float) -> None:
        """Note what it took; and as 'idle' what passed since it was last noted."""
        now = time.monotonic()
        idle = max(now - self.seen - seconds, 0.0)
        self.seconds["wait" if not self.running and not self.charge.read else "idle"] += idle
        self.seconds[cause] += seconds
        self.seen = now

    def spent(self) -> AnswerSpent:
        """All that it took."""
        first = self.times[0] - self.arrived if self.times else None
        between = tuple(after - before for before, after in zip(self.times, self.times[1:], strict=False))
        unread = self.written - max(0, self.deepest - len(self.request.prompt))
        return AnswerSpent(self.charge, dict(self.seconds), first, between, unread, self.drafting, self.changed)


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next in a text.

    tokens: there may be none.
    parents: of each, the place in `tokens` of the one before it, -1 for the text itself; a parent stands before its children.
        None: each follows the one before it.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] | None = None

    def parent(self, place: int) -> int:
        """The place of the token before this one; -1: the text."""
        return place - 1 if self.parents is None else self.parents[place]

    def children(self, place: int) -> list[int]:
        """The places of the tokens after this one."""
        if self.parents is None:
            return [place + 1] if place + 1 < len(self.tokens) else []
        return [child for child, parent in enumerate(self.parents) if parent == place]

    def depth(self, place: int) -> int:
        """How many tokens of the draft stand before it."""
        depth = 0
        while (place := self.parent(place)) >= 0:
            depth += 1
        return depth
