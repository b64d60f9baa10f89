"""Of several mini-batches, the one with the highest loss is trained on."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval

from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At
from shoestring.data.selection import Chosen, OpenModel, row_losses
from shoestring.method import method


@method(
    "data",
    kind="selection",
    name="hard_batches",
    paper="Can we learn better with hard samples?, arXiv:2304.03486",
    claim="26.47 % fewer epochs for EfficientNet-B4 on STL-10",
    cost="a forward pass over `delta` mini-batches a step, charged",
)
class HardBatches:
    """Draws delta mini-batches, and trains on that of the highest mean loss.

    In the paper delta says how many of the mini-batches are considered for training, by loss. Here they are considered in each
    step, by the model as it is then, so that nothing needs to be remembered.

    delta: mini-batches to choose from.
    """

    def __init__(self, open_model: OpenModel, *, delta: Annotated[int, Interval(ge=2, le=64)] = 2) -> None:
        self.more = delta

    def choose(self, model: LanguageModel, parts: Sequence[Batch], rows: int, at: At) -> Chosen:
        losses, spent = row_losses(model, parts)
        means = losses[: len(losses) // rows * rows].view(-1, rows).mean(dim=1)
        hardest = int(means.argmax())
        return Chosen(torch.arange(hardest * rows, (hardest + 1) * rows), spent)
