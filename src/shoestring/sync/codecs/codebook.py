"""Codebooks of few levels for weighted samples."""

import torch
from torch import Tensor

SIGMAS = 6.0
ROUNDS = 30


class Samples:
    """Sorted samples of several groups, with sums that give the mean between any two of them.

    points [groups, samples], float64, ascending. weights [groups, samples], how often each occurs; once by default.
    """

    def __init__(self, points: Tensor, weights: Tensor | None = None) -> None:
        self.points = points
        self.weights = torch.ones_like(points) if weights is None else weights.to(points.dtype)
        self._mass = _before(self.weights)
        self._positive = _before(self.weights * points.clamp(min=0))
        self._negative = _before((self.weights * points.clamp(max=0)).flip(1)).flip(1)
        ends = torch.tensor([[0, points.shape[1]]], device=points.device).expand(len(points), 2)
        self.mean = self._sums(ends) / self._mass[:, -1:]

    def _sums(self, at: Tensor) -> Tensor:
        """The sums of the samples from each place of `at` [groups, places] to the next. Each sign is added up from zero
        outwards, so that a sum is exact to a few parts in 1e16 of its largest sample however large those further out."""
        return self._positive.gather(1, at).diff(dim=1) - self._negative.gather(1, at).diff(dim=1)

    def quantile_levels(self, count: int) -> Tensor:
        """The means of `count` bins of equal probability, [groups, count]; a sample on a border is shared by its two bins."""
        total = self._mass[:, -1:]
        border = total * torch.arange(count + 1, dtype=total.dtype, device=total.device) / count
        at = (torch.searchsorted(self._mass, border, right=True) - 1).clamp_(max=self.points.shape[1] - 1)
        edge = self.points.gather(1, at)
        shared = (border - self._mass.gather(1, at)) * edge
        return _within((self._sums(at) + shared.diff(dim=1)) / (total / count), edge)

    def deviation_levels(self, count: int) -> Tensor:
        """The means of `count` bins of equal width about mean + (i - count / 2) (6 sigma / count), the outer two open."""
        spread = _before(self.weights * (self.points - self.mean).square())[:, -1:]
        sigma = (spread / (self._mass[:, -1:] - 1).clamp(min=1)).sqrt()
        place = torch.arange(count, dtype=sigma.dtype, device=sigma.device) - count / 2
        centre = self.mean + place * (SIGMAS / count * sigma)
        return self._cell_means(centre)

    def lloyd_levels(self, count: int) -> Tensor:
        """Levels that are each the mean of what is nearest to it, by Lloyd's method from `quantile_levels`."""
        levels = self.quantile_levels(count)
        for _ in range(ROUNDS):
            levels = self._cell_means(levels)
        return levels

    def _cell_means(self, levels: Tensor) -> Tensor:
        """For each ascending level the mean of the samples nearest to it, or the level where there is none."""
        border = torch.searchsorted(self.points, midpoints(levels))
        first, last = torch.zeros_like(border[:, :1]), torch.full_like(border[:, :1], self.points.shape[1])
        at = torch.cat([first, border, last], 1)
        mass = self._mass.gather(1, at).diff(dim=1)
        edge = self.points.gather(1, at.clamp(max=self.points.shape[1] - 1))
        return torch.where(mass > 0, _within(self._sums(at) / mass.clamp(min=1), edge), levels)


def midpoints(levels: Tensor) -> Tensor:
    """The borders [groups, count - 1] between what is nearest to one level and to the next."""
    return levels[:, :-1] / 2 + levels[:, 1:] / 2


def _before(values: Tensor) -> Tensor:
    """The sums of what comes before each place, and of all: one longer than the values. One thread takes each row."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def _within(means: Tensor, edge: Tensor) -> Tensor:
    """Means held between the edges of their bins, out of which differences of rounded sums could carry them."""
    return torch.minimum(torch.maximum(means, edge[:, :-1]), edge[:, 1:])
