"""Synthetic problems that are solved from examples in their context, each with the answer that is best to give.

William L. Tong and Cengiz Pehlevan, MLPs Learn In-Context on Regression and Classification Tasks, arXiv:2405.15618. The abstract
names the tasks; the distributions are as the paper and its authors' code have them, where that could be read.

A problem is `length` rows of numbers, the last of which is the query. All is drawn by a generator: a seed gives the same problems.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Problems(NamedTuple):
    """rows: float32 [B, length, features]. answers: float32 [B], or int64 [B] of a task with choices. best: of the best answer that
    the rows allow, float32 [B], or the logits of the choices [B, choices]."""

    rows: Tensor
    answers: Tensor
    best: Tensor


@dataclass(frozen=True)
class InContextTask(ABC):
    """examples: rows before the query. size: numbers of a point."""

    examples: int = 8
    size: int = 8

    @property
    @abstractmethod
    def features(self) -> int:
        """Numbers of a row."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Numbers that a model is to give: one, or as many as there are choices."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Problems:
        """So many problems."""

    @property
    def length(self) -> int:
        """Rows of a problem."""
        return self.examples + 1

    def loss(self, given: Tensor, answers: Tensor) -> Tensor:
        """The mean loss of outputs [B, outputs]: squared error, or cross-entropy in nats."""
        if answers.is_floating_point():
            return F.mse_loss(given.flatten(), answers)
        return F.cross_entropy(given, answers)

    def best_loss(self, problems: Problems) -> float:
        """The mean loss of the best answers."""
        return float(self.loss(problems.best, problems.answers))


@dataclass(frozen=True)
class Regression(InContextTask):
    """y = x . beta + noise e; rows (x, y), and (x, 0) for the query. x, e: normal; beta: normal, of variance 1 / size.

    The best answer, that of the posterior mean of beta, is ridge regression with lambda = size noise². With a `pool` beta is one of
    so many, drawn once; then it is their mean weighed by their likelihood.

    noise: standard deviation of e. pool: 0: beta is new in each problem. pool_seed: draws the pool.
    """

    noise: float = 0.25
    pool: int = 0
    pool_seed: int = 0

    @property
    def features(self) -> int:
        return self.size + 1

    @property
    def outputs(self) -> int:
        return 1

    @property
    def weights(self) -> Tensor:
        """[pool, size]: what beta is one of."""
        generator = torch.Generator().manual_seed(self.pool_seed)
        return torch.randn(self.pool, self.size, generator=generator) / math.sqrt(self.size)

    def draw(self, count: int, generator: torch.Generator) -> Problems:
        x = torch.randn(count, self.length, self.size, generator=generator)
        if self.pool:
            beta = self.weights[torch.randint(self.pool, (count,), generator=generator)]
        else:
            beta = torch.randn(count, self.size, generator=generator) / math.sqrt(self.size)
        y = (x @ beta[..., None])[..., 0] + self.noise * torch.randn(count, self.length, generator=generator)
        seen = torch.cat((y[:, :-1], torch.zeros(count, 1)), 1)
        return Problems(torch.cat((x, seen[..., None]), 2), y[:, -1], self.best(x, y[:, :-1]))

    def best(self, x: Tensor, y: Tensor) -> Tensor:
        """[B], from x [B, length, size] and the answers of all but the last [B, examples]."""
        asked, x = x[:, -1].double(), x[:, :-1].double()
        y = y.double()
        if self.pool:
            pool = self.weights.double()
            errors = (y[:, None] - pool @ x.transpose(1, 2)).square().sum(-1)  # [B, pool]
            beta = (-errors / (2 * self.noise**2)).softmax(-1) @ pool
        else:
            gram = x.transpose(1, 2) @ x + self.size * self.noise**2 * torch.eye(self.size, dtype=x.dtype)
            beta = torch.linalg.solve(gram, (x.transpose(1, 2) @ y[..., None])[..., 0])
        return (asked * beta).sum(-1).float()


@dataclass(frozen=True)
class Classification(InContextTask):
    """Points around centres, `burst` around each, with a label for each centre; the query is around one of them: which label?

    Rows (point, label as 0 and 1), and (point, 0 ..) for the query. Centres are new in each problem, normal of variance 1 / size; a
    point is (centre + spread z) / sqrt(1 + spread²), z as a centre is. Labels are dealt without a rule, so that a centre's label is
    to be read from the context (as in Gautam Reddy, 2024, arXiv:2312.03002, of which this is the case of endless classes).

    The best answer is that of Bayes: centres are as likely before, and a point q around the centre of points with the mean m is
    normal around their posterior mean, with one variance for all.

    labels: choices. burst: points of a centre. spread: above.
    """

    labels: int = 8
    burst: int = 2
    spread: float = 0.5

    def __post_init__(self) -> None:
        if self.examples % self.burst or self.examples // self.burst > self.labels:
            raise ValueError(
                f"{self.examples} examples are not bursts of {self.burst} with one of {self.labels} labels each"
            )

    @property
    def features(self) -> int:
        return self.size + self.labels

    @property
    def outputs(self) -> int:
        return self.labels

    def draw(self, count: int, generator: torch.Generator) -> Problems:
        kinds = self.examples // self.burst
        centres = torch.randn(count, kinds, self.size, generator=generator) / math.sqrt(self.size)
        named = torch.rand(count, self.labels, generator=generator).argsort(1)[:, :kinds]
        order = torch.rand(count, self.examples, generator=generator).argsort(1) % kinds
        asked = torch.randint(kinds, (count, 1), generator=generator)
        own = torch.cat((order, asked), 1)  # the kind of each row
        z = torch.randn(count, self.length, self.size, generator=generator) / math.sqrt(self.size)
        around = centres.gather(1, own[..., None].expand(-1, -1, self.size))
        points = (around + self.spread * z) / math.sqrt(1 + self.spread**2)
        labels = named.gather(1, own)
        shown = F.one_hot(labels, self.labels).float()
        shown[:, -1] = 0
        return Problems(torch.cat((points, shown), 2), labels[:, -1], self.best(points, shown[:, :-1]))

    def best(self, points: Tensor, shown: Tensor) -> Tensor:
        """[B, labels]: logarithms of what is proportional to the posterior.

        points: [B, length, size]. shown: [B, examples, labels].
        """
        raw = points.double() * math.sqrt(1 + self.spread**2)
        counts = shown.double().sum(1)  # [B, labels]
        means = shown.double().transpose(1, 2) @ raw[:, :-1] / counts.clamp_min(1)[..., None]
        certain = counts / self.spread**2
        posterior = means * (certain / (1 + certain))[..., None]
        variance = (1 / (1 + certain) + self.spread**2) / self.size
        squares = (raw[:, -1:] - posterior).square().sum(-1)
        logits = -squares / (2 * variance) - self.size / 2 * variance.log()
        return logits.masked_fill(counts == 0, -torch.inf).float()


@dataclass(frozen=True)
class MatchToSample(InContextTask):
    """Points at equal distances on a circle that is turned by chance, in any order; which is the nearest to the query on it?

    Rows are points, the query the last. The best answer is the one of the largest inner product. size: 2.
    """

    size: int = 2

    def __post_init__(self) -> None:
        if self.size != 2:
            raise ValueError("points of a circle have 2 numbers")

    @property
    def features(self) -> int:
        return self.size

    @property
    def outputs(self) -> int:
        return self.examples

    def draw(self, count: int, generator: torch.Generator) -> Problems:
        turned = torch.rand(count, 2, generator=generator) * 2 * math.pi
        places = torch.rand(count, self.examples, generator=generator).argsort(1)
        angles = torch.cat((turned[:, :1] + places * 2 * math.pi / self.examples, turned[:, 1:]), 1)
        rows = torch.stack((angles.cos(), angles.sin()), -1)
        products = (rows[:, :-1] @ rows[:, -1:].transpose(1, 2))[..., 0]
        answers = products.argmax(1)
        return Problems(rows, answers, torch.full_like(products, -torch.inf).scatter(1, answers[:, None], 0.0))


TASKS: dict[str, type[InContextTask]] = {
    "regression": Regression,
    "classification": Classification,
    "match_to_sample": MatchToSample,
}
