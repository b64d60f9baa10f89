"""Test-time training: a model learns a moment from the texts nearest to what it is about to read, and is then as it was."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Batch, Inputs
from shoestring.contract.model import LanguageModule
from shoestring.contract.objective import At, Objective
from shoestring.errors import UsageError
from shoestring.method import Count, Positive, method

Embed = Callable[[Sequence[int]], Tensor]
"""Makes a vector [d] of the tokens of a text."""


def hashed_pairs(ids: Sequence[int], width: int = 4096) -> Tensor:
    """[width]: counts of single tokens and of pairs, hashed, in square roots, of length 1. An embedding that needs no model."""
    found = torch.zeros(width)
    for one in ids:
        found[(one * 2654435761) % width] += 1
    for one, other in itertools.pairwise(ids):
        found[(one * 2654435761 + other * 40503 + 97) % width] += 1
    return torch.nn.functional.normalize(found.sqrt(), dim=0)


class Neighbours:
    """Texts, found by how near their embeddings are.

    texts: token ids of each, two at least. embed: makes the vectors.
    """

    def __init__(self, texts: Sequence[Sequence[int]], embed: Embed = hashed_pairs) -> None:
        self.texts = [list(text) for text in texts if len(text) > 1]
        if not self.texts:
            raise UsageError("there is no text of two tokens or more to find neighbours among")
        self.embed = embed
        self.vectors = torch.stack([embed(text) for text in self.texts])

    def nearest(self, text: Sequence[int], count: int) -> list[list[int]]:
        """The texts with the least Euclidean distance to `text`, the nearest first."""
        distances = (self.vectors - self.embed(text)).square().sum(1)
        order = distances.argsort(stable=True)[:count]
        return [self.texts[place] for place in order.tolist()]


@dataclass
class SpentAtTest:
    """What tuning at one test took, once the context is left."""

    charge: Charge = NOTHING


@method(
    "tune",
    kind="test time",
    name="nearest_neighbours",
    paper="Test-Time Training on Nearest Neighbors for Large Language Models, arXiv:2305.18466",
    claim="as few as 20 neighbours, one gradient iteration each, drastically improve performance on more than 20 language "
    "modelling tasks of the Pile; index quality and size are necessary",
    cost="`count` training steps of a sequence for each text that is read; a copy of the trained weights",
)
class NearestNeighbours:
    """Take one step on each of the texts nearest to a test text, the nearest first; read; and undo it.

        for x' in neighbours(x), nearest first:  theta <- Adam(theta, grad -log p_theta(x'))

    The optimiser is new for each test. Adapters make the copy small: what takes a gradient is tuned.

    model: whatever of it takes gradients is tuned.
    neighbours: what is learnt from.
    objective: of a step.
    count: neighbours of a test.
    lr: of Adam.
    context: tokens of a neighbour that are read, at most; the model's, where it has fewer.
    """

    def __init__(
        self,
        model: LanguageModule,
        neighbours: Neighbours,
        objective: Objective,
        *,
        count: Count = 20,
        lr: Positive = 2e-5,
        context: Count = 512,
    ) -> None:
        self.model, self.neighbours, self.objective = model, neighbours, objective
        self.count, self.lr, self.context = count, lr, min(context, model.about.context)

    @contextmanager
    def tuned(self, text: Sequence[int]) -> Iterator[SpentAtTest]:
        """While the model is tuned to what is like `text`; after it, every weight is as it was, bit for bit."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not trained:
            raise UsageError("nothing in this model takes a gradient: there is nothing to tune at test time")
        before, spent = [parameter.detach().clone() for parameter in trained], SpentAtTest()
        optimiser, training = torch.optim.Adam(trained, lr=self.lr), self.model.training
        try:
            self.model.train()
            with torch.enable_grad():
                for step, neighbour in enumerate(self.neighbours.nearest(text, self.count)):
                    loss = self.objective(self.model, self._batch(neighbour), At(step, step / self.count))
                    loss.total.backward()
                    optimiser.step()
                    optimiser.zero_grad(set_to_none=True)
                    spent.charge += sum(loss.spent.values(), Charge(tokens=min(len(neighbour) - 1, self.context)))
            self.model.train(training)
            yield spent
        finally:
            with torch.no_grad():
                for parameter, value in zip(trained, before, strict=True):
                    parameter.copy_(value)
                    parameter.grad = None
            self.model.train(training)

    def _batch(self, text: Sequence[int]) -> Batch:
        ids = torch.tensor([list(text[: self.context + 1])], device=self.model.device)
        return Batch(Inputs(ids[:, :-1]), ids[:, 1:])
