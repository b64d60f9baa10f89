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

UTILISATION = 0.42
"""Share of the large-matrix rate that training reaches, all in: measured on models of 1 to 10 M parameters."""

OVERHEAD = 0.88
"""Share of a budget in seconds that is left for training after compiling, evaluation and checkpoints."""

TOKENS_PER_PARAMETER = 1.2
"""Training tokens per parameter at which a step up in size pays, at small scale; Chinchilla (Training Compute-Optimal
Large Language Models, arXiv:2203.15556) has 20 at large scale, and the budgets here are far below its smallest."""

MOST_EPOCHS = 4.0
"""Passes over the corpus that are worth nearly as much as new text (Scaling Data-Constrained Language Models,
arXiv:2305.16264)."""

BATCH_AT = 1.2e6
BATCH_TOKENS = 2048
BATCH_EXPONENT = 0.5
"""Tokens a step: 2048 for 1.2 M training tokens, growing with the square root of the tokens."""

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


@dataclass(frozen=True)
class Shape:
    """A rung of the ladder of model sizes."""

    layers: int
    width: int
    head_width: int = 64


LADDER = (
    Shape(2, 64, 32),
    Shape(3, 128, 32),
    Shape(4, 192),
    Shape(4, 256),
    Shape(6, 256),
    Shape(6, 320),
    Shape(6, 384),
    Shape(8, 384),
    Shape(8, 512),
    Shape(10, 640),
    Shape(12, 768),
    Shape(16, 1024),
    Shape(20, 1280),
    Shape(24, 1536),
    Shape(24, 2048),
    Shape(32, 2560),
)


def context_for(tokens: float) -> int:
    """Window length: longer ones pay once there are tokens enough to learn from them."""
    for most, context in ((2e7, 256), (3e8, 512), (3e9, 1024)):
        if tokens < most:
            return context
    return 2048
