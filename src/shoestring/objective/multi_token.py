"""Multi-token prediction: each place predicts the next token and those after it."""

from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import IGNORED, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.multi_token import heads_of
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import NonNegative, method
from shoestring.objective.cross_entropy import CrossEntropy


@method(
    "objective",
    name="multi_token",
    paper="Better & Faster Large Language Models via Multi-token Prediction, arXiv:2404.19737",
    claim="a 13B model solves 12% more problems of HumanEval and 17% more of MBPP than one trained on the next token, and models "
    "trained with 4-token prediction are up to 3 times faster at inference",
    cost="a feed-forward block and the output layer, forward and backward, for each token ahead",
)
class MultiToken:
    """The mean negative log-likelihood of the next token, and of those after it, each by a head of its own.

        L = L_1 + weight sum_{k=2..n} L_k,   L_k = -mean_t log p_k(x_{t+k} | x_1 .. x_t)

    Head k (`multi_token_heads`) makes a hidden state of the trunk's, and the model's output matrix makes logits of it. A target in
    another document does not count. Where the cross-entropy is fused, the logits of one head at a time are in memory, as the
    paper's one backward pass after the other has them.

    The paper's heads are transformer layers, and its first is one, too; these are feed-forward blocks, so that they draft from one
    hidden state, without a cache. Its weight is 1.

    weight: of each later token.
    """

    def __init__(self, cross_entropy: CrossEntropy, *, weight: NonNegative = 1.0) -> None:
        self.cross_entropy, self.weight = cross_entropy, weight

    def count(self, batch: Batch) -> float:
        """The number of targets."""
        return batch.tokens

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for a model without such heads, for weighted targets, and without an output matrix."""
        heads, reading = heads_of(model), model.read(batch.inputs)
        matrix = reading.head.weight
        if matrix is None or batch.weights is not None:
            raise UsageError("multi_token needs a model whose head is one matrix, and targets that all count the same")
        if batch.inputs.length <= heads.ahead:
            raise UsageError(f"rows of {batch.inputs.length} tokens are too short to predict {heads.ahead} ahead")
        first = mean = self.cross_entropy(reading.hidden, matrix, batch.targets)
        parts = {"next_token": first.detach()}
        shape = Shape(batch.rows, batch.inputs.length, backward=True)
        flops = model.cost(shape).flops + 3 * heads.flops(shape.tokens)
        for ahead, head in enumerate(heads.heads, start=2):
            goals = later(batch, ahead)
            loss = self.cross_entropy(head(reading.hidden[:, : goals.shape[1]]), matrix, goals)
            mean = mean + self.weight * loss
            parts[f"token_{ahead}"] = loss.detach()
            flops += 3 * reading.head.flops(goals.numel())
        return Loss(mean, {MODEL: Charge(flops=flops)}, parts, reading.auxiliary())


def later(batch: Batch, ahead: int) -> Tensor:
    """[B, T - ahead + 1] int64: of each place, the token so many places after what was read, of its own document."""
    skipped = ahead - 1
    goals, documents, lengths = batch.targets[:, skipped:], batch.inputs.documents, batch.inputs.lengths
    if documents is not None:
        goals = goals.where(documents[:, skipped:] == documents[:, : documents.shape[1] - skipped], IGNORED)
    if lengths is not None:
        import torch

        inside = torch.arange(skipped, batch.inputs.length, device=goals.device)[None] < lengths[:, None]
        goals = goals.where(inside, IGNORED)
    return goals
