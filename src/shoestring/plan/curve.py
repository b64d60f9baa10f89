"""Where a training curve will end, from its first part, with an interval that says how little a first part tells.

The curve is L(p) = E + A / (1 + p / p_0)^alpha. Many shapes (p_0, alpha) fit a first part as well as the best one does, and end
elsewhere. So none is chosen: each of a grid counts by how well it fits, E and A are drawn as the data leave them open, and the
interval is that of all that was drawn. This is Bayes' rule with E and A flat, the noise by Jeffreys' prior.
"""

import math

import numpy as np
from numpy.typing import NDArray

from shoestring.errors import UsageError
from shoestring.plan.law import Prediction

Numbers = NDArray[np.float64]

EXPONENTS = np.geomspace(0.08, 2.0, 14)
CENTRE, SPREAD = math.log(0.5), 0.8
"""Of the logarithm of the exponent: curves of training fall with exponents from a fifth to a little over one."""

PLACES = np.geomspace(1e-4, 1.0, 18)
"""p_0, as shares of the budget: each as likely."""

DRAWS = 6000
LEAST = 6
"""Points, at least."""


def extrapolate(shares: Numbers, losses: Numbers, at: float, *, confidence: float = 0.9, seed: int = 0) -> Prediction:
    """The loss at a share of the budget, its interval that of the curve and of one more point's noise.

    shares: [n], of the budget, at which the losses [n] were measured.
    at: the share that is asked for.
    Raises: UsageError for fewer than 6 points, or losses that are not finite.
    """
    if len(shares) < LEAST or not np.isfinite(losses).all():
        raise UsageError(f"{len(shares)} points are too few for the end of a curve: {LEAST} finite ones at least")
    n, fits = len(shares), []
    for exponent in EXPONENTS:
        prior = -(((math.log(exponent) - CENTRE) / SPREAD) ** 2) / 2
        for place in PLACES:
            x = (1 + shares / place) ** -exponent
            design = np.stack([np.ones(n), x], axis=1)
            square = design.T @ design + 1e-12 * np.eye(2)
            best = np.linalg.solve(square, design.T @ losses)
            rest = max(float(((losses - design @ best) ** 2).sum()), 1e-16 * n)
            weight = prior - np.linalg.slogdet(square)[1] / 2 - (n - 2) / 2 * math.log(rest)
            fits.append((weight, best, np.linalg.cholesky(np.linalg.inv(square)), rest, (1 + at / place) ** -exponent))
    weights = np.exp(np.array([fit[0] for fit in fits]) - max(fit[0] for fit in fits))
    drawn = np.random.default_rng(seed)
    chosen = drawn.choice(len(fits), size=DRAWS, p=weights / weights.sum())
    normals, noises = drawn.standard_normal((DRAWS, 3)), drawn.chisquare(n - 2, DRAWS)
    ends = []
    for which, normal, freedom in zip(chosen, normals, noises, strict=True):
        _, best, root, rest, x = fits[which]
        deviation = math.sqrt(rest / freedom)
        floor, height = best + deviation * (root @ normal[:2])
        if floor > 0 and height > 0:  # a loss stays above zero, and healing does not raise it
            ends.append(floor + height * x + deviation * normal[2])
    if len(ends) < DRAWS // 50:  # the losses do not fall: what they are now is all that can be said
        mean, spread = float(losses.mean()), float(losses.std(ddof=1))
        return Prediction(mean, mean - 2 * spread, mean + 2 * spread)
    low, middle, high = np.quantile(ends, [(1 - confidence) / 2, 0.5, (1 + confidence) / 2])
    return Prediction(float(middle), float(low), float(high))
