"""AMQ: a search over the bits of all matrices, guided by a predictor that learns from the losses it has measured."""

from collections.abc import Sequence

import numpy as np

from shoestring.method import Count, Decay, Iterations, method
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.parts import Bits


@method(
    "quantise",
    kind="bits",
    name="amq",
    paper="AMQ: Enabling AutoML for Mixed-precision Weight-Only Quantization of Large Language Models, arXiv:2509.12019",
    claim="reaches the Pareto frontier of quality and memory among more than 10^100 configurations",
    cost="a reading of about 500 tokens for each matrix and each configuration that is tried; a copy of the matrices' weights",
)
class AMQ(Bits):
    """Search the widths of all matrices within the target: prune the space, predict losses, try the most promising, learn, repeat.

    Lee et al. (2025), arXiv:2509.12019. Its four parts, as they are here:

    1. pruning: matrices whose loss alone at the smallest width is more than `outlier` times the median never have that width;
    2. proxy: losses are of matrices rounded to the nearest, whatever solver follows;
    3. predictor: radial basis functions over the widths of measured configurations, on top of the sum of the losses alone;
    4. search and update: in each of `rounds`, `children` mutations and crossings of the best are predicted, `tried` of them
    measured.

    The best that was measured is taken. Differs: the paper measures the Jensen-Shannon divergence, and searches the whole
    frontier of size and loss with NSGA-II; here the limit is fixed, and children beyond it are brought back within by lowering
    widths at random.

    The seed is 0: the same choice each time.

    rounds: of search and update.
    children: configurations that are predicted in a round.
    tried: of these, how many are measured.
    outlier: how many times the median loss is too much for the smallest width.
    """

    reads = True

    def __init__(
        self, *, rounds: Iterations = 6, children: Count = 200, tried: Iterations = 6, outlier: Count = 4
    ) -> None:
        self.rounds, self.children, self.tried, self.outlier = rounds, children, tried, outlier

    def choose(self, allocation: BitAllocation) -> list[int]:
        """As `Bits.choose`. The budget's end ends the search with the best so far."""
        draw = np.random.default_rng(0)
        alone = np.array(allocation.sensitivities())
        floor = (alone[:, 0] > self.outlier * max(float(np.median(alone[:, 0])), 1e-12)).astype(int)
        if not allocation.fits(_bits(allocation, floor)):
            floor = np.zeros_like(floor)
        known: dict[tuple[int, ...], float] = {}
        pool = [_within(allocation, np.full(len(alone), at), floor, draw) for at in range(len(allocation.widths))]
        pool.append(_within(allocation, _ranked(alone, len(allocation.widths)), floor, draw))
        for _ in range(self.rounds + 1):
            for one in pool:
                if tuple(one) not in known and (not known or not allocation.over()):
                    known[tuple(one)] = allocation.loss(_bits(allocation, one))
            if allocation.over():
                break
            best = [np.array(one) for one in sorted(known, key=lambda one: known[one])[: max(2, self.tried)]]
            made = [self._child(allocation, best, floor, draw) for _ in range(self.children)]
            fresh = list({tuple(one): one for one in made if tuple(one) not in known}.values())
            if not fresh:
                break
            guesses = predicted(np.array(list(known)), np.array(list(known.values())), np.array(fresh), alone)
            pool = [fresh[place] for place in guesses.argsort(kind="stable")[: self.tried]]
        return _bits(allocation, min(known, key=lambda one: known[one]))

    def _child(
        self, allocation: BitAllocation, best: Sequence[np.ndarray], floor: np.ndarray, draw: np.random.Generator
    ) -> np.ndarray:
        """A crossing of two of the best, some of its widths changed by one."""
        one, other = (best[int(place)] for place in draw.integers(len(best), size=2))
        made = np.where(draw.random(len(one)) < 0.5, one, other)
        moved = draw.random(len(one)) < max(1.5 / len(one), 0.1)
        made = made + moved * draw.choice([-1, 1], size=len(one))
        return _within(allocation, made.clip(0, len(allocation.widths) - 1), floor, draw)


def _bits(allocation: BitAllocation, places: Sequence[int] | np.ndarray) -> list[int]:
    return [allocation.widths[int(place)] for place in places]


def _ranked(alone: np.ndarray, widths: int) -> np.ndarray:
    """Wider codes for those that lose more alone, in equal parts."""
    return (alone[:, 0].argsort().argsort() * widths // len(alone)).astype(int)


def _within(allocation: BitAllocation, made: np.ndarray, floor: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The same with widths lowered at random until it fits, and raised at random while it does."""
    made = np.maximum(made, floor)
    costs = np.array(allocation.costs)
    rows, limit = np.arange(len(made)), allocation.limit * (1 + 1e-9)
    while costs[rows, made].sum() > limit:
        able = np.flatnonzero(made > floor)
        if not len(able):
            able, floor = np.flatnonzero(made > 0), np.zeros_like(floor)
        made[draw.choice(able)] -= 1
    for place in draw.permutation(len(made)):
        while made[place] + 1 < costs.shape[1]:
            more = costs[place, made[place] + 1] - costs[place, made[place]]
            if costs[rows, made].sum() + more > limit:
                break
            made[place] += 1
    return made


def predicted(
    known: np.ndarray, losses: np.ndarray, asked: np.ndarray, alone: np.ndarray, ridge: Decay = 1e-3
) -> np.ndarray:
    """The losses of configurations, from those of others: the sum of the losses alone, and radial basis functions for the rest.

    known: [n, matrices] places of widths, of the losses [n]. asked: [k, matrices]. alone: [matrices, widths].
    """
    rows = np.arange(alone.shape[0])

    def summed(of: np.ndarray) -> np.ndarray:
        return alone[rows, of].sum(1)

    base = np.stack([np.ones(len(known)), summed(known)], 1)
    fitted = np.linalg.lstsq(base, losses, rcond=None)[0]
    apart = np.abs(known[:, None] - known[None]).sum(2) / alone.shape[0]
    width = max(float(np.median(apart)), 1e-9)
    weights = np.linalg.solve(np.exp(-apart / width) + ridge * np.eye(len(known)), losses - base @ fitted)
    near = np.exp(-np.abs(asked[:, None] - known[None]).sum(2) / alone.shape[0] / width)
    found: np.ndarray = np.stack([np.ones(len(asked)), summed(asked)], 1) @ fitted + near @ weights
    return found
