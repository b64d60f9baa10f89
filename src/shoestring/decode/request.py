"""What is asked of an engine, and what it answers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from shoestring.budget.charge import NOTHING, Charge
from shoestring.decode.sampling import Constraint, LogProbability, Sampling


class Stop(StrEnum):
    """Why an answer ended."""

    END = "the text ended"
    LENGTH = "max_new_tokens reached"
    CONTEXT = "context is full"
    CANCELLED = "cancelled"
    DEADLINE = "its time was over"
    FLOPS = "its FLOPs were spent"
    ROOM = "there is no room to go on"


DEFAULT = Sampling()
"""How tokens are chosen, where nothing is said."""


@dataclass(frozen=True)
class Request:
    """A text to go on from.

    prompt: its tokens, at least one.
    sampling: how tokens are chosen.
    max_new_tokens: where an answer ends at the latest.
    ends: tokens of which any ends an answer; it is no part of it.
    samples: how many answers; they share what is held of the prompt.
    log_probabilities: how many of the likeliest tokens to report at each place; 0: the chosen one alone; None: none.
    constraint: what the answer may be.
    seconds, flops: what the answer may take, counted from `Engine.submit` on; it ends where one is spent.
    priority: requests of a higher one go first.
    expected: tokens that the answer is thought to have; None: nobody knows.
    adapter: the one of the engine's adapters that the text is read and answered with, by name; None: the model alone.
    """

    prompt: tuple[int, ...]
    sampling: Sampling = DEFAULT
    max_new_tokens: int = 256
    ends: frozenset[int] = frozenset()
    samples: int = 1
    log_probabilities: int | None = None
    constraint: Constraint | None = None
    seconds: float = math.inf
    flops: float = math.inf
    priority: int = 0
    expected: int | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("the prompt is empty: it needs at least one token")
        for name in ("max_new_tokens", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class AnswerSpent:
    """What an answer took.

    charge: positions read, reused, written and wasted; FLOPs; bytes moved. What several requests shared is divided among them
        by the positions of each, so that all answers add up to what the engine spent.
    seconds: by cause: 'wait' until it was first read, 'prefill', 'decode', 'draft', divided likewise; 'idle', between passes.
    first: seconds from submission to the first token; None where there was none.
    between: seconds between tokens after that, one number a token; those of one pass come at once.
    unread: tokens of the answer that no pass read, as nothing was to follow: the last, mostly.
    drafting: what of `charge` the drafter took; its `read` are positions of the draft model.
    changed: tokens of drafts that stayed though the model chose another. 0: the text is the one that decoding without drafts gives.
    """

    charge: Charge = NOTHING
    seconds: Mapping[str, float] = field(default_factory=dict)
    first: float | None = None
    between: tuple[float, ...] = ()
    unread: int = 0
    drafting: Charge = NOTHING
    changed: int = 0

    @property
    def total(self) -> float:
        """Seconds of all causes."""
        return sum(self.seconds.values())


class Written(NamedTuple):
    """A token of an answer. log_probability: where the request asked for it."""

    token: int
    log_probability: LogProbability | None = None


@dataclass(frozen=True)
class Event:
    """What a pass brought for one answer.

    number: of the request, as `Engine.submit` gave it. sample: which of its answers, from 0.
    written: new tokens. stop: why the answer has ended; None while it goes on. spent: what it took, where it has ended.
    """

    number: int
    sample: int
    written: tuple[Written, ...] = ()
    stop: Stop | None = None
    spent: AnswerSpent | None = None


@dataclass(frozen=True)
class Answer:
    """A whole answer. tokens: without the one that ended it."""

    number: int
    sample: int
    tokens: tuple[int, ...]
    stop: Stop
    spent: AnswerSpent
    log_probabilities: tuple[LogProbability, ...] = ()
