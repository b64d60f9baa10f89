"""Masked-input regularisation: predict the next token a second time, with some of those before it hidden."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.budget.ledger import MODEL
from shoestring.contract.batch import HIDDEN, Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModel
from shoestring.contract.objective import At, Loss
from shoestring.errors import UsageError
from shoestring.method import NonNegative, Whole, method
from shoestring.objective.cross_entropy import CrossEntropy
from shoestring.objective.next_token import text_loss
from shoestring.objective.token_distillation import counted


@method(
    "objective",
    name="masked_input",
    paper="Data-Constrained Language Model Pretraining: Improved Regularization and Scaling Laws, arXiv:2606.06888",
    claim="where text is repeated, a lower validation loss than strong weight decay alone, for 72M to 1.4B parameters: worth about "
    "1.3 times as much unique text",
    cost="every pass twice while training; nothing afterwards",
)
class MaskedInput:
    """The loss of next tokens, and that of the same targets read from a text with holes.

        L = L_next(x) + weight L_next(x with tokens hidden)

    Zhiwei Xu et al., 2026, arXiv:2606.06888. Of each row a share r in [0, most], drawn evenly, is hidden, token by token, after the
    first `first` tokens. All targets count in both terms. The model stays causal: held-out losses and decoding are the usual ones.

    Settings are those of the source's published program for 257M parameters. Its variants that hide a set number of tokens, or
    count the targets at hidden tokens alone, are not here.

    weight: of the second term. most: of the share of a row that is hidden. first: tokens of a row that are always shown.
    """

    def __init__(
        self,
        cross_entropy: CrossEntropy,
        *,
        weight: NonNegative = 0.4,
        most: Annotated[float, Interval(gt=0, le=1)] = 0.5,
        first: Whole = 8,
    ) -> None:
        self.cross_entropy, self.weight, self.most, self.first = cross_entropy, weight, most, first

    def count(self, batch: Batch) -> float:
        """The number of targets, or the sum of their weights."""
        return counted(batch)

    def __call__(self, model: LanguageModel, batch: Batch, at: At) -> Loss:
        """The mean loss. Raises: UsageError for a model that reads no hidden tokens."""
        if not model.about.hides:
            raise UsageError(
                "objective = masked_input needs a model that reads hidden tokens: give --model.hides true, or, on a base, --edits "
                "'[{name = \"hidden_tokens\", both_ways = false}]'"
            )
        whole = model.read(batch.inputs)
        plain = text_loss(whole, batch, self.cross_entropy)
        hidden = self.hidden(batch, at)
        values = batch.inputs.values.masked_fill(hidden, HIDDEN)
        holed = model.read(batch.inputs._replace(values=values))
        other = text_loss(holed, batch, self.cross_entropy)
        flops = model.cost(Shape(batch.rows, batch.inputs.length, backward=True)).flops
        parts = {"next_token": plain.detach(), "masked_input": other.detach(), "hidden": hidden.float().mean()}
        terms = [term for term in (whole.auxiliary(), holed.auxiliary()) if term is not None]
        added = torch.stack(terms).mean() if terms else None
        return Loss(plain + self.weight * other, {MODEL: Charge(flops=2 * flops)}, parts, added)

    def hidden(self, batch: Batch, at: At) -> Tensor:
        """bool [B, T]: what is hidden of a micro-batch."""
        generator, values = at.generator(), batch.inputs.values
        shares = self.most * torch.rand((batch.rows, 1), generator=generator)
        found = torch.rand(values.shape, generator=generator) < shares
        found[:, : self.first] = False
        return found.to(values.device)
