"""AutoMixQ: bits a layer, by a light model of what configurations lose and the Pareto front of loss and cost."""

import numpy as np

from shoestring.method import Count, Iterations, method
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.parts import Bits


@method(
    "quantise",
    kind="bits",
    name="automixq",
    paper="AutoMixQ: Self-Adjusting Quantization for High Performance Memory-Efficient Fine-Tuning, arXiv:2411.13814",
    claim="at 30% pruned LLaMA-7B, 66.21% on BoolQ against 62.45% of LoRA, with 35.5% less memory",
    cost="a reading of about 500 tokens for each configuration that is measured; a copy of the matrices' weights",
)
class AutoMixQ(Bits):
    """Draw configurations of bits a layer, measure some, fit a light model of their loss, and take the best within the target.

    Zhou et al. (2024), arXiv:2411.13814. All matrices of a layer have the same width. `measured` configurations, drawn at random
    among those within the target, are measured; the model is ridge regression of the loss on 4^-bits of each layer, as a squared
    rounding error falls with bits. Of `drawn` more, those on the Pareto front of predicted loss and cost are looked at, and the
    `finalists` of least predicted loss are measured too. The best that was measured is taken. Differs: the paper measures
    accuracies after fine-tuning with LoRA on pruned models; this is the search alone, on losses of matrices rounded to the
    nearest. The seed is 0.

    measured: configurations drawn at random that are measured.
    drawn: configurations whose loss is predicted.
    finalists: of these on the front, how many are measured.
    """

    reads = True

    def __init__(self, *, measured: Iterations = 16, drawn: Count = 2000, finalists: Iterations = 4) -> None:
        self.measured, self.drawn, self.finalists = measured, drawn, finalists

    def choose(self, allocation: BitAllocation) -> list[int]:
        """As `Bits.choose`. The budget's end ends the search with the best so far."""
        draw = np.random.default_rng(0)
        layers = sorted({one.layer for one in allocation.matrices})
        of = np.array([layers.index(one.layer) for one in allocation.matrices])
        costs = np.stack([np.bincount(of, weights=column) for column in np.array(allocation.costs).T], 1)
        known: dict[tuple[int, ...], float] = {}

        def measure(places: np.ndarray) -> None:
            if tuple(places) not in known and (not known or not allocation.over()):
                known[tuple(places)] = allocation.loss([allocation.widths[int(place)] for place in places[of]])

        for _ in range(self.measured):
            measure(_drawn(costs, allocation.limit, draw))
        asked = np.stack([_drawn(costs, allocation.limit, draw) for _ in range(self.drawn)])
        widths = np.array(allocation.widths, dtype=np.float64)
        guesses = _ridge(4.0 ** -widths[np.array(list(known))], np.array(list(known.values())), 4.0 ** -widths[asked])
        spent = costs[np.arange(len(layers)), asked].sum(1)
        front = pareto(guesses, spent)
        for place in front[guesses[front].argsort(kind="stable")][: self.finalists]:
            measure(asked[place])
        best = np.array(min(known, key=lambda one: known[one]))
        return [allocation.widths[int(place)] for place in best[of]]


def _drawn(costs: np.ndarray, limit: float, draw: np.random.Generator) -> np.ndarray:
    """Places of widths [layers], at random, raised until nothing more fits."""
    made, rows = np.zeros(len(costs), dtype=int), np.arange(len(costs))
    while True:
        more = np.array(
            [
                costs[row, made[row] + 1] - costs[row, made[row]] if made[row] + 1 < costs.shape[1] else np.inf
                for row in rows
            ]
        )
        able = np.flatnonzero(costs[rows, made].sum() + more <= limit * (1 + 1e-9))
        if not len(able):
            return made
        made[draw.choice(able)] += 1


def _ridge(known: np.ndarray, losses: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Predicted losses [k] of `asked` [k, layers], from `known` [n, layers]."""
    mean, middle = known.mean(0), losses.mean()
    scale = np.maximum(known.std(0), 1e-12)
    left = (known - mean) / scale
    weights = np.linalg.solve(left.T @ left + 0.1 * len(left) * np.eye(left.shape[1]), left.T @ (losses - middle))
    found: np.ndarray = (asked - mean) / scale @ weights + middle
    return found


def pareto(losses: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The places of those that no other beats in both, [n]."""
    order, best, found = np.lexsort((losses, costs)), np.inf, list[int]()
    for place in order:
        if losses[place] < best:
            best = float(losses[place])
            found.append(int(place))
    return np.array(found, dtype=int)
