"""Rows whose gradients are the medoids of a larger batch, and all rows of small sources."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At
from shoestring.data.selection import Chosen, OpenModel, projection_gradients
from shoestring.method import Count, method


@method(
    "data",
    kind="selection",
    name="colm",
    paper="Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures, arXiv:2407.19580",
    claim="half the memory of fine-tuning by LoRA, and better than training with mini-batches four times as large, on MathInstruct "
    "and SuperGLUE",
    cost="a forward pass over `more` batches a step, charged; width squared numbers a row, held for the larger batch",
)
class CoLM:
    """Chooses a mini-batch whose gradient is near that of a batch `more` times as large.

    A source with no more rows in the larger batch than its even part, rows / sources, is small: all its rows are taken. The other
    sources share what is left in proportion to their rows, and of each the medoids are taken: greedily, the row that lowers
    sum_i min_{j chosen} |g_i - g_j|_1 most. g_i: the row's gradient in one matrix, each entry divided by the root of its second
    moment, as Adam would; of the entries, the `keep` in which the larger batch's normalised gradient is largest.

    Sources are the batch's extra 'domain' ([[data.source]]); without it there is one.

    Where it differs: the paper estimates the gradient in the last V projection from two forward passes, and has Adam's running
    moments. Here it is the exact gradient in a matrix before the head, which every model has, and the second moment is that of
    the larger batch's rows, so that nothing is remembered from step to step. Rows chosen count the same.

    more: how many times as many rows are chosen from.
    keep: entries of the gradient that distances are worked out over, at most.
    """

    def __init__(
        self,
        open_model: OpenModel,
        *,
        more: Annotated[int, Interval(ge=2, le=64)] = 2,
        keep: Count = 2560,
    ) -> None:
        self.more, self.keep = more, keep

    def choose(self, model: LanguageModel, parts: Sequence[Batch], rows: int, at: At) -> Chosen:
        gradients, spent = projection_gradients(model, parts)
        features = normalised(gradients, self.keep)
        domains = [part.extra.get("domain", torch.zeros(part.rows, dtype=torch.int64)) for part in parts]
        source = torch.cat([each.cpu() for each in domains])
        chosen: list[int] = []
        for number, count in shares(source, rows).items():
            own = (source == number).nonzero()[:, 0]
            picked = range(len(own)) if count == len(own) else medoids(features[own], count)
            chosen += own[list(picked)].tolist()
        return Chosen(torch.tensor(sorted(chosen)), spent)


def normalised(gradients: Tensor, keep: int) -> Tensor:
    """[B, min(keep, n)] of gradients [B, n]: over the root of their second moments, the entries with the largest mean."""
    scaled = gradients / (gradients.square().mean(dim=0).sqrt() + 1e-12)
    largest = scaled.mean(dim=0).abs().topk(min(keep, scaled.shape[1])).indices
    return scaled[:, largest.sort().values]


def shares(source: Tensor, rows: int) -> dict[int, int]:
    """How many rows to take of each source: all of the small ones, the rest by the number of rows. source: int64 [B]."""
    there = {int(number): int(count) for number, count in zip(*source.unique(return_counts=True), strict=True)}
    small = {number: count for number, count in there.items() if count * len(there) <= rows}
    large = {number: count for number, count in there.items() if number not in small}
    left, whole = rows - sum(small.values()), sum(large.values())
    parts = {number: left * count // whole for number, count in large.items()}
    by_rest = sorted(large, key=lambda number: (-(left * large[number] % whole), number))
    for number in by_rest[: left - sum(parts.values())]:
        parts[number] += 1
    return {number: count for number, count in {**small, **parts}.items() if count}


def medoids(features: Tensor, count: int) -> list[int]:
    """Rows of [n, k] that lower the sum of distances from each row to the nearest chosen one most, one after the other."""
    distances = torch.cdist(features.double(), features.double(), p=1)
    nearest = torch.full((len(features),), torch.inf, dtype=torch.float64)
    free, chosen = torch.ones(len(features), dtype=torch.bool), list[int]()
    while len(chosen) < count:
        sums = torch.minimum(nearest[:, None], distances).sum(dim=0)
        following = int(torch.where(free, sums, torch.inf).argmin())
        free[following] = False
        chosen.append(following)
        nearest = torch.minimum(nearest, distances[following])
    return chosen
