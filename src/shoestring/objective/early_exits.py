"""Early exits: the head learns to say the next token after every layer."""

from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import Exits, LanguageModel, LanguageModule
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import Count, NonNegative, method
from shoestring.objective.cross_entropy import CrossEntropy


@method(
    "objective",
    name="early_exits",
    paper="LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding, arXiv:2404.16710",
    claim="with layer dropout, up to 2.16x faster summarisation and 1.82x faster coding, by drafts of the first layers",
    cost="the last norm and the output layer, forward and backward, at each exit of a step: one in `every` layers",
)
class EarlyExits:
    """The mean of the negative log-likelihoods of the next token after several layers, by the model's own norm and head.

    Mostafa Elhoushi et al., 2024, arXiv:2404.16710. After layer l of L, from 0, the loss counts e(l), divided by their sum:

        e(l) = scale (0 + 1 + .. + l) for l < L - 1,   e(L - 1) = L - 1 + scale (0 + 1 + .. + (L - 2))

    At step t there are exits after the layers with l mod `every` = t mod `every` (the paper's rotation), and after the last.

    The paper drops layers while it trains, more of the later ones; here none is. Its curriculum of exits that come one by one is
    not here.

    The drafter `layer_skip` drafts with the first layers of such a model.

    scale: what early exits count. every: layers to an exit.
    """

    def __init__(self, cross_entropy: CrossEntropy, *, scale: NonNegative = 0.2, every: Count = 4) -> None:
        self.cross_entropy, self.scale, self.every = cross_entropy, scale, every

    def count(self, batch: Batch) -> float:
        """The number of targets."""
        return batch.tokens

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for a model that has no exits, for weighted targets, and without an output matrix."""
        if not isinstance(model, LanguageModule) or not isinstance(model, Exits):
            raise UsageError("early_exits: the head of this model cannot be asked after a layer")
        names = model.anatomy().layers
        last = len(names) - 1
        leaving = [layer for layer in range(1, last) if layer % self.every == at.step % self.every]
        reading = model.read(batch.inputs, tap=[names[layer] for layer in leaving])
        matrix = reading.head.weight
        if matrix is None or batch.weights is not None:
            raise UsageError("early_exits needs a model whose head is one matrix, and targets that all count the same")

        def loss(hidden: Tensor) -> Tensor:
            return self.cross_entropy(hidden, matrix, batch.targets)

        losses = {layer: loss(model.leaving(reading.tapped[names[layer]])) for layer in leaving}
        losses[last] = loss(reading.hidden)
        weights = {layer: self.scale * layer * (layer + 1) / 2 for layer in leaving}
        weights[last] = max(last, 1) + self.scale * (last - 1) * last / 2
        total = sum(weights.values())
        mean = sum(
            (losses[layer] * (weights[layer] / total) for layer in leaving), losses[last] * (weights[last] / total)
        )
        flops = model.cost(Shape(batch.rows, batch.inputs.length, backward=True)).flops
        flops += 3 * reading.head.flops(batch.targets.numel()) * len(leaving)
        parts = {"next_token": losses[last].detach()}
        return Loss(mean, {MODEL: Charge(flops=flops)}, parts, reading.auxiliary())
