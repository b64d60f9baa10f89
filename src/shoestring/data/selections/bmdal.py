"""Rows whose gradients differ, and stand for the others."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At
from shoestring.data.selection import Chosen, OpenModel, sketched_gradients
from shoestring.method import method


@method(
    "data",
    kind="selection",
    name="bmdal",
    paper="A Framework and Benchmark for Deep Batch Active Learning for Regression, arXiv:2203.09410",
    claim="sketched gradients with largest-cluster selection are best on 15 large tabular data sets, and need no change of the "
    "network",
    cost="a forward pass over `more` batches a step, sketches of `width` numbers a row, charged",
)
class Bmdal:
    """Chooses rows by sketched last-layer gradients phi(x), by one of the framework's rules.

    lcmd (largest cluster, maximum distance): the row of largest |phi| first; then each row belongs to the nearest chosen one, and
    from the cluster with the largest sum of squared distances the farthest row is next. maxdet: the row with the largest
    part outside the span of the chosen ones (pivoted Cholesky of phi phi^T). kmeanspp: drawn with a chance in proportion to
    the squared distance from the nearest chosen one. The framework chooses what to label, so its gradients are of outputs;
    here labels are known, and they are of the loss.

    rule: 'lcmd', 'maxdet' or 'kmeanspp'.
    more: how many times as many rows are chosen from.
    width: of a sketch.
    """

    def __init__(
        self,
        open_model: OpenModel,
        *,
        rule: Literal["lcmd", "maxdet", "kmeanspp"] = "lcmd",
        more: Annotated[int, Interval(ge=2, le=64)] = 2,
        width: Annotated[int, Interval(ge=8, le=8192)] = 256,
    ) -> None:
        self.rule, self.more, self.width = rule, more, width

    def choose(self, model: LanguageModel, parts: Sequence[Batch], rows: int, at: At) -> Chosen:
        features, spent = sketched_gradients(model, parts, self.width, seed=at.seed)
        rules = {"lcmd": lcmd, "maxdet": maxdet}
        wide = features.double()
        chosen = kmeanspp(wide, rows, at.generator()) if self.rule == "kmeanspp" else rules[self.rule](wide, rows)
        return Chosen(torch.tensor(sorted(chosen)), spent)


def _squared(features: Tensor, row: int) -> Tensor:
    return ((features - features[row]) ** 2).sum(dim=1)


def lcmd(features: Tensor, count: int) -> list[int]:
    """Rows of [n, k] by largest cluster, maximum distance."""
    chosen = [int((features**2).sum(dim=1).argmax())]
    nearest, owner = _squared(features, chosen[0]), torch.zeros(len(features), dtype=torch.int64)
    while len(chosen) < count:
        free = torch.ones(len(features), dtype=torch.bool)
        free[chosen] = False
        sizes = torch.zeros(len(chosen), dtype=features.dtype).index_add_(0, owner, nearest * free)
        some = torch.zeros(len(chosen), dtype=torch.bool)
        some[owner[free]] = True  # copies of a chosen row have clusters of size 0
        cluster = int(torch.where(some, sizes, -1.0).argmax())
        following = int(torch.where(free & (owner == cluster), nearest, -1.0).argmax())
        distance = _squared(features, following)
        closer = distance < nearest
        owner[closer] = len(chosen)
        nearest = torch.minimum(nearest, distance)
        chosen.append(following)
    return chosen


def maxdet(features: Tensor, count: int) -> list[int]:
    """Rows of [n, k], each with the largest part outside the span of those before it."""
    rest, chosen = features.clone(), list[int]()
    free = torch.ones(len(features), dtype=torch.bool)
    while len(chosen) < count:
        sizes = torch.where(free, (rest**2).sum(dim=1), -1.0)
        following = int(sizes.argmax())
        free[following] = False
        chosen.append(following)
        if sizes[following] > 1e-20:
            direction = rest[following] / rest[following].norm()
            rest = rest - (rest @ direction)[:, None] * direction
    return chosen


def kmeanspp(features: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Rows of [n, k], each drawn with a chance in proportion to its squared distance from the nearest before it."""
    chosen = [int(torch.randint(len(features), (1,), generator=generator))]
    nearest = _squared(features, chosen[0])
    while len(chosen) < count:
        chance = nearest.clone()
        chance[chosen] = 0
        if not chance.sum() > 0:  # what is left are copies
            chance = torch.ones_like(nearest)
            chance[chosen] = 0
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
        nearest = torch.minimum(nearest, _squared(features, chosen[-1]))
    return chosen
