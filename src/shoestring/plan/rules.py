"""The constants of the planner's rules, each with where it comes from.

They were tuned by hand on the embedded corpus with about ten runs of one seed, at budgets of one and two minutes on two
cores; laws fitted from runs will take their place. Outside that range they are an extrapolation, and `shoestring plan`
says so.
"""

from dataclasses import dataclass

TRIED_SECONDS = (60.0, 120.0)
"""Budgets, in seconds on two cores, that the rules were tuned on."""

LONGEST_SECONDS = 366 * 86400.0
"""A run that takes longer is refused: nobody means it."""

WIDE = 0.5
HALF_AT = 100
"""Share of the large-matrix rate that training of very wide models reaches, not compiled, and the width that reaches half of
it: what is no matrix product grows with the width, the products with its square. By this 0.20 at width 64, 0.28 at 128 and
0.38 at 320; measured were 0.22 (evidence/default-seconds), 0.27 and 0.44 (evidence/throughput-10m.json, its compiler taken
off)."""

STARTING_SECONDS = 1.0
"""Of building a small model and of a process's first step, in which torch sets itself up, on two cores."""

MEASURING_SHARE = 0.1
"""The most of a budget in seconds that measuring may take, which decides how to compute."""

MEASURING_SECONDS = 4.0
"""What it takes for a shape that was never measured here, where there is time."""

FORWARD_SHARE = 0.4
"""An evaluation's share of the time of training on as many tokens, until one is measured."""

EVALUATING = 0.05
"""Share of a budget in seconds that one evaluation on the way may take."""

FEW_STEPS = 20
"""Steps below which a run is too short to learn from."""

ENOUGH_STEPS = 64
"""Steps that a batch is to leave, down to one sequence: of few tokens, as in healing a large model for minutes, small steps learn
more than a few large ones."""

BASE_BATCH = 4
"""Sequences of a step, at most, of a model that has learnt before: it is tuned on few tokens, at rates that suit small batches."""

CHECKPOINT_SECONDS = 60.0
CHECKPOINT_SHARE = 0.05
"""Seconds from one checkpoint to the next, and the most of the time that writing them may take: of large models fewer are made."""

TOKENS_PER_PARAMETER = 0.8
"""Training tokens per parameter at which a step up in size pays, at small scale; Chinchilla (Training Compute-Optimal
Large Language Models, arXiv:2203.15556) has 20 at large scale, and the budgets here are far below its smallest. It was 1.2 of
the tokens that plans expected when this was tuned, of which two thirds were trained."""

MOST_EPOCHS = 4.0
"""Passes over the corpus that are worth nearly as much as new text (Scaling Data-Constrained Language Models,
arXiv:2305.16264)."""

MOST_WEIGHTS = 6.3
"""Times as many parameters as a text suffices for, beyond which more of them add little: 1 + R_N* of that law's published fit."""

LAST_EPOCHS = 16.0
"""Passes over the corpus after which little is left to learn from it: 1 + R_D* of that fit. How soon a text runs out is asked by
Will we run out of data?, arXiv:2211.04325."""

BATCH_AT = 0.8e6
BATCH_TOKENS = 2048
BATCH_EXPONENT = 0.5
"""Tokens a step: 2048 for 0.8 M training tokens, growing with the square root of the tokens."""

CRITICAL_SHARE = 0.5
"""The most of a measured critical batch that a step takes: at a share s of it the same loss takes 1 + s times the tokens
that the smallest batch would need (An Empirical Model of Large-Batch Training, arXiv:1812.06162)."""

OPTIMIZER = "muon_hypersphere"
"""The first of the table in docs/methods.md at equal tokens and at equal seconds, and at the plan's own model and a minute
ahead of Muon (evidence/default-seconds)."""

RATES = {"muon_hypersphere": (0.04, 0.02), "muon": (0.025, 0.015), "lamb": (0.03, 0.02)}
"""Peak learning rates of an optimiser and of AdamW for what it does not take: the best of three tried for each in
evidence/default-seconds. Those of the Muons are for matrices, whose update they scale by shape or by norm."""

DECAY = 0.6
DECAY_SHAPE = "linear"
"""The part of the budget over which the learning rate falls to zero, and how: the best of the few one-minute runs tried had it."""

ACTIVATION_FLOATS = 20
"""float32 numbers kept for the backward pass, per token, layer and unit of width."""


ADAPTED = 20
"""Parameters of a base for each of an adapter, at least: one of rank 32 on every matrix of a model 576 wide."""


@dataclass(frozen=True)
class Rung:
    """A rung of the ladder of model sizes."""

    layers: int
    width: int
    head_width: int = 64


LADDER = (
    Rung(2, 64, 32),
    Rung(3, 128, 32),
    Rung(4, 192),
    Rung(4, 256),
    Rung(6, 256),
    Rung(6, 320),
    Rung(6, 384),
    Rung(8, 384),
    Rung(8, 512),
    Rung(10, 640),
    Rung(12, 768),
    Rung(16, 1024),
    Rung(20, 1280),
    Rung(24, 1536),
    Rung(24, 2048),
    Rung(32, 2560),
)


def utilisation(width: int) -> float:
    """Share of the large-matrix rate that training reaches, all in, at a width."""
    return WIDE * width / (width + HALF_AT)


def sampling_seconds(tokens: int) -> float:
    """Of the sample at the end, at some 200 tokens/s."""
    return 0.15 + tokens / 200


def saving_seconds(size: float) -> float:
    """Of a checkpoint: `size` bytes of weights, and moments, written and hashed at some 200 MB/s."""
    return 3 * size / 2e8


def context_for(tokens: float) -> int:
    """Window length: longer ones pay once there are tokens enough to learn from them."""
    for most, context in ((2e7, 256), (3e8, 512), (3e9, 1024)):
        if tokens < most:
            return context
    return 2048


def checkpoint_every(size: float) -> float:
    """Seconds from one checkpoint of so many bytes of weights to the next."""
    return float(max(CHECKPOINT_SECONDS, round(saving_seconds(size) / CHECKPOINT_SHARE)))
