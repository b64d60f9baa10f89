"""A ladder of cheap runs for laws: sizes by numbers of tokens, and batches and rates at the smallest size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shoestring.errors import UsageError
from shoestring.plan import rules

SIZES = 5
"""Of the ladder of shapes, from the smallest, at most."""

HORIZONS = 3
"""Numbers of tokens that every size is trained on."""

STRIDE = 3.0
"""Each of them is so many times the one before."""

LEAST_SIZES = 3
"""That laws are fitted to, at least."""

AROUND = (0.5, 2.0)
"""Batches and rates about the rule's, as factors, of each number of tokens at the smallest size."""

LEAST_STEPS = 24
"""Of the shortest run at the rule's batch: below it, a loss is that of a warm-up."""

USED = 0.85
"""Share of the allowance that the runs are planned to take: machines get slower, and a ladder without its dearest run tells
little of dearer ones."""

RUN_SECONDS = 3.0
"""What a run takes beside its steps: its start, its evaluation and its last checkpoint."""


@dataclass(frozen=True)
class LadderRun:
    """One run.

    name: of its folder. layers, width, head_width, context: of its model. tokens: to train on. batch: sequences of a step.
    rate: factor on the rule's rates. seconds: that it is expected to take.
    """

    name: str
    layers: int
    width: int
    head_width: int
    context: int
    tokens: int
    batch: int
    rate: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def asked(self, optimizer: str) -> dict[str, Any]:
        """What a recipe holds for it."""
        rates = rules.RATES[optimizer]
        return {
            "budget": f"{self.tokens}tok",
            "model": {
                "layers": self.layers,
                "width": self.width,
                "heads": self.width // self.head_width,
                "context": self.context,
            },
            "train": {"batch": self.batch, "evaluate_every": 1.0, "sample_tokens": 0},
            "optim": {"name": optimizer, "lr": rates[0] * self.rate},
            "fallback": {"name": "adamw", "lr": rates[1] * self.rate},
        }


def ladder(
    seconds: float, per_token: Sequence[float], *, context: int = 256, batch: Callable[[float], int] | None = None
) -> list[LadderRun]:
    """The runs that an allowance is enough for: the grid of sizes and tokens, then batches and rates, each the cheapest first.

    Every size is trained on every number of tokens, D, 3 D and 9 D, at the batch and the rates of the rules. The smallest size is
    trained at half and twice the batch too, and at half and twice the rates. As many sizes are taken as leave the shortest run
    24 steps; D follows from the allowance. A grid over size and tokens, unlike one number of tokens for each size, tells the
    two exponents of a law apart.

    seconds: the allowance.
    per_token: seconds of training on a token, of each shape of `rules.LADDER` from the smallest, as many as are known.
    batch: sequences of a step by tokens; None: the rule's.
    Raises: UsageError where the allowance is too small for three sizes.
    """
    chosen = batch or (lambda tokens: rule_batch(tokens, context))
    shares = sum(STRIDE**step for step in range(HORIZONS))
    about = 2 * len(AROUND)
    for count in range(min(SIZES, len(per_token)), LEAST_SIZES - 1, -1):
        runs = HORIZONS * (count + about)
        each = shares * (sum(per_token[:count]) + about * per_token[0])
        shortest = (USED * seconds - runs * RUN_SECONDS) / each
        if shortest >= LEAST_STEPS * chosen(max(shortest, 1.0)) * context:
            break
    else:
        runs = HORIZONS * (LEAST_SIZES + about)
        each = shares * (sum(per_token[:LEAST_SIZES]) + about * per_token[0])
        least = (runs * RUN_SECONDS + LEAST_STEPS * chosen(1.0) * context * each) / USED
        raise UsageError(
            f"an allowance of {seconds:.0f} s is too little for a ladder of {LEAST_SIZES} sizes here: give {math.ceil(least)}s"
        )
    grid, around = list[LadderRun](), list[LadderRun]()
    for horizon in range(HORIZONS):
        tokens = shortest * STRIDE**horizon
        usual = chosen(tokens)
        for at in range(count):
            grid.append(_rung(at, tokens, usual, 1.0, context, per_token[at]))
        for factor in AROUND:
            around.append(_rung(0, tokens, max(1, round(usual * factor)), 1.0, context, per_token[0]))
            around.append(_rung(0, tokens, usual, factor, context, per_token[0]))
    return [*sorted(grid, key=lambda rung: rung.seconds), *sorted(around, key=lambda rung: rung.seconds)]


def _rung(at: int, tokens: float, batch: int, rate: float, context: int, per_token: float) -> LadderRun:
    """at: the place of its shape. per_token: seconds."""
    shape, whole = rules.LADDER[at], int(tokens)
    name = f"{shape.layers}x{shape.width}-{whole}tok-batch{batch}-rate{rate:g}"
    seconds = RUN_SECONDS + whole * per_token
    return LadderRun(name, shape.layers, shape.width, shape.head_width, context, whole, batch, rate, seconds)


def rule_batch(tokens: float, context: int) -> int:
    """Sequences of a step by rule."""
    wanted = rules.BATCH_TOKENS * (tokens / rules.BATCH_AT) ** rules.BATCH_EXPONENT / context
    return max(4, 2 ** round(math.log2(max(wanted, 1.0))))
