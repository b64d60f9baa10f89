"""Of all configurations that a budget buys, the one that a law expects the lowest loss of, and those next to it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoestring.plan.law import Fitted, Prediction

REPEATED_STAR = 15.39
"""R_D*: passes beyond the first after which repeated tokens have lost 1 - 1/e of their worth (arXiv:2305.16264)."""


@dataclass(frozen=True)
class Option:
    """A configuration, and what the budget buys of it.

    name: for people.
    parameters: of the model.
    tokens: that it is trained on.
    seconds, flops, memory, sent: what its run takes; memory is a level, in bytes, and so are bytes sent over a link.
    binding: the resource that ends the run.
    """

    name: str
    parameters: int
    tokens: float
    seconds: float
    flops: float
    memory: float
    sent: float
    binding: str

    def row(self, unique: float = math.inf) -> dict[str, float]:
        """What a law reads. unique: tokens of the corpus; those read again count for less."""
        return {"parameters": float(self.parameters), "tokens": worth(self.tokens, unique)}


@dataclass(frozen=True)
class Ranked:
    """An option, and the loss that is expected of it."""

    option: Option
    expected: Prediction


@dataclass(frozen=True)
class Search:
    """law: by which it was searched. found: options within every limit, the lowest expected loss first. refused: the others,
    each with the reason."""

    law: Fitted
    found: tuple[Ranked, ...]
    refused: tuple[tuple[Option, str], ...]

    @property
    def best(self) -> Ranked:
        return self.found[0]

    @property
    def next_best(self) -> tuple[Ranked, ...]:
        """The two after the best."""
        return self.found[1:3]


def worth(tokens: float, unique: float) -> float:
    """D' = U + U R* (1 - exp(-(D / U - 1) / R*)): what D tokens of a corpus of U are worth in tokens that are read once.

    Scaling Data-Constrained Language Models, arXiv:2305.16264, equation 5.
    """
    if tokens <= unique:
        return tokens
    return unique + unique * REPEATED_STAR * (1 - math.exp(-(tokens / unique - 1) / REPEATED_STAR))


def search(
    options: Iterable[Option],
    law: Fitted,
    *,
    limits: Mapping[str, float],
    unique: float = math.inf,
    least_tokens: float = 0.0,
) -> Search:
    """Rank options by the loss that a law expects.

    limits: the most that an option may take, of 'seconds', 'flops', 'memory' and 'sent'.
    unique: tokens of the corpus.
    least_tokens: that a run is worth making for.
    """
    allowed, refused = list[Option](), list[tuple[Option, str]]()
    for option in options:
        beyond = next((name for name, most in limits.items() if getattr(option, name) > most * (1 + 1e-9)), None)
        if beyond is not None:
            refused.append((option, f"{getattr(option, beyond):.3g} {_WORDS[beyond]}, of {limits[beyond]:.3g} allowed"))
        elif option.tokens <= least_tokens:
            refused.append((option, f"the budget buys {max(option.tokens, 0):.3g} tokens of it, too few"))
        else:
            allowed.append(option)
    ranked = [Ranked(option, law.predict(option.row(unique))) for option in allowed]
    return Search(law, tuple(sorted(ranked, key=_order)), tuple(refused))


_WORDS = {"seconds": "seconds", "flops": "FLOPs", "memory": "bytes of memory", "sent": "bytes over the link"}


def _order(ranked: Ranked) -> tuple[float, int]:
    return ranked.expected.value, ranked.option.parameters


def told_apart(found: Sequence[Ranked]) -> bool:
    """Whether the interval of the best excludes what is expected of the next."""
    return len(found) < 2 or found[1].expected.value > found[0].expected.high
