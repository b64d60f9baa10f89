"""Training nested models as one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import Depth, LanguageModel, LanguageModule, uncompiled
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import Fraction, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.next_token import text_loss
from shoestring.objective.token_distillation import counted


class _First(Depth):
    """A `Depth`: the first `count` layers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def times(self, layer: int, hidden: Tensor) -> int:
        """As `Depth.times`."""
        return int(layer < self.count)


@method(
    "objective",
    name="sortednet",
    paper="SortedNet, a Place for Every Network and Every Network in its Place: Towards a Generalized Solution for Training "
    "Many-in-One Neural Networks, arXiv:2309.00255",
    claim="up to 160 models trained at once, which keep 96 % of what each would be alone",
    cost="that of the nested model that was drawn: fewer layers are cheaper, fewer hidden features are not while training",
)
class SortedNet:
    """Train, in each micro-batch, one of several models that lie within each other.

        L = CE of the model of the first n layers, each with the first h hidden features,   (n, h) drawn evenly from depth x hidden

    The edit `nested` cuts any of them out of the trained model. Gradients of the micro-batches of a step add up, as the paper's do
    over steps of accumulation. Features beyond h are computed and set to zero, so that only fewer layers save time here.

    depth: shares of the layers that models have.
    hidden: shares of the hidden features.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        depth: tuple[Fraction, ...] = (1.0,),
        hidden: tuple[Fraction, ...] = (0.5, 0.75, 1.0),
    ) -> None:
        if not depth or not hidden or min(*depth, *hidden) <= 0:
            raise ValueError("sortednet: depth and hidden are shares above 0, at least one each")
        self.cross_entropy, self.depth, self.hidden = cross_entropy, depth, hidden

    def count(self, batch: Batch) -> float:
        """The number of targets that count, or the sum of their weights."""
        return counted(batch)

    def drawn(self, at: At) -> tuple[float, float]:
        """(share of the layers, share of the hidden features) of a micro-batch."""
        first, second = torch.rand(2, generator=at.generator()).tolist()
        return self.depth[int(first * len(self.depth))], self.hidden[int(second * len(self.hidden))]

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for a model that does not tell its parts."""
        if not isinstance(model, LanguageModule):
            raise UsageError("sortednet needs a model that tells its parts")
        depth, hidden = self.drawn(at)
        layers = len(model.anatomy().layers)
        count = max(1, round(depth * layers))
        with narrowed(model, hidden):
            ours = model.read(batch.inputs, depth=None if count == layers else _First(count))
        mean = text_loss(ours, batch, self.cross_entropy)
        shape = Shape(batch.rows, batch.inputs.length, backward=True)
        head = 3 * ours.head.flops(batch.targets.numel())
        body = model.cost(shape).flops - head
        flops = head + body * count // layers
        parts = {"depth": torch.tensor(depth), "hidden": torch.tensor(hidden)}
        return Loss(mean, {MODEL: Charge(flops=flops)}, parts, ours.auxiliary())


@contextmanager
def narrowed(model: LanguageModule, share: float) -> Iterator[None]:
    """While only the first of each layer's hidden features are there. Raises: UsageError where the model does not tell them."""
    if share == 1:
        yield
        return
    axes = model.anatomy().axes("hidden")
    if not axes:
        raise UsageError("sortednet: this model has no axis 'hidden'; native models, and those with a bridge, have one")

    def hook(kept: int) -> Any:
        def cut(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            there = torch.arange(given[0].shape[-1], device=given[0].device) < kept
            return (given[0] * there, *given[1:])

        return cut

    handles, names = [], list[str]()
    for axis in axes:
        for one in axis.slices:
            if one.dim == 1:
                names.append(one.name.removesuffix(".weight"))
                module = model.get_submodule(names[-1])
                handles.append(module.register_forward_pre_hook(hook(max(1, round(share * axis.size)))))
    try:
        with uncompiled(model, names):
            yield
    finally:
        for handle in handles:
            handle.remove()
