"""Tokens that stood in the same batch, after the same ones."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel
from shoestring.method import method


@method(
    "objective",
    kind="generator",
    name="ngram_table",
    paper="Efficient pre-training objectives for Transformers, arXiv:2104.09694",
    claim="a simple statistical generator, which costs nothing, trains encoders that are as good as with a neural one",
    cost="sorting the tokens of the micro-batch",
)
class NgramTable:
    """Draw a token among those that follow the same order - 1 tokens in the micro-batch; where none other does, any of its tokens.

        p(x) = count of (the tokens before, x) / count of the tokens before

    The source's statistical generator is another one, of the whole corpus, which could not be read; a table of the micro-batch has
    no state, and is rebuilt as the batch changes.

    order: of the n-grams; 1: how often a token stands in the micro-batch.
    """

    teachers: tuple[str, ...] = ()

    def __init__(self, *, order: Annotated[int, Interval(ge=1, le=8)] = 1) -> None:
        self.order = order

    def learn_from(self, models: Sequence[LanguageModel]) -> None:
        """Nothing: it asks no model."""

    def replace(self, inputs: Inputs, chosen: Tensor, chance: torch.Generator) -> tuple[Tensor, Charge]:
        """As `TokenGenerator.replace`."""
        values, device = inputs.values.cpu(), inputs.values.device
        places = chosen.cpu().flatten().nonzero()[:, 0]
        first, second = torch.rand((2, len(places)), generator=chance, dtype=torch.float64)
        flat = values.flatten()
        anywhere = flat[(first * len(flat)).long()]
        if self.order == 1 or not len(places):
            return anywhere.to(device), NOTHING
        classes = self.classes(values)
        counts = classes.bincount()
        own = classes[places]
        following = classes.argsort(stable=True)  # the places, class after class
        starts = counts.cumsum(0) - counts
        drawn = flat[following[starts[own] + (second * counts[own]).long()]]
        return torch.where(counts[own] > 1, drawn, anywhere).to(device), NOTHING

    def classes(self, values: Tensor) -> Tensor:
        """int64 [B T]: equal for places with the same order - 1 tokens before; those near the start of a row stand alone."""
        before = self.order - 1
        rows, length = values.shape
        contexts = torch.stack([values.roll(back, 1) for back in range(1, before + 1)], -1).flatten(0, 1)
        found = contexts.unique(dim=0, return_inverse=True)[1]
        early = (torch.arange(length) < before).repeat(rows)
        return found.where(~early, len(found) + torch.arange(rows * length))
