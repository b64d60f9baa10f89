"""Tokens that another model fills in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.batch import HIDDEN, Inputs
from shoestring.contract.model import LanguageModel
from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "objective",
    kind="generator",
    name="masked_model",
    paper="ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators, arXiv:2003.10555",
    claim="a generator of a quarter to half the size of the discriminator works best",
    cost="a pass of the generator",
)
class MaskedModel:
    """Draw each token of what a model that fills in hidden ones says of its place, all the chosen places hidden at once.

    Different from the paper: the generator is trained before, by the objective `masked_diffusion`, and stays as it is; there it is
    trained beside the detector. It has an embedding of its own.

    place: of the model, with the run's tokenizer.
    """

    def __init__(self, *, place: str = "") -> None:
        if not place:
            raise ValueError("place: name the model that fills in tokens, such as runs/small")
        self.teachers: tuple[str, ...] = (place,)
        self._model: LanguageModel | None = None

    def learn_from(self, models: Sequence[LanguageModel]) -> None:
        """Take the model. Raises: UsageError where it fills in nothing."""
        (model,) = models
        if model.about.causal or not model.about.hides:
            raise UsageError(
                f"{self.teachers[0]} fills in no hidden tokens: train one with --objective masked_diffusion"
            )
        self._model = model

    @torch.no_grad()
    def replace(self, inputs: Inputs, chosen: Tensor, chance: torch.Generator) -> tuple[Tensor, Charge]:
        """As `TokenGenerator.replace`."""
        if self._model is None:
            raise UsageError("masked_model has no model yet: it is opened with a run")
        reading = self._model.read(inputs._replace(values=inputs.values.masked_fill(chosen, HIDDEN)))
        shares = reading.head.logits(reading.hidden[chosen]).float().softmax(-1)
        drawn = torch.rand((len(shares), 1), generator=chance).to(shares.device)
        tokens = torch.searchsorted(shares.cumsum(-1), drawn * shares.sum(-1, keepdim=True), right=True)[:, 0]
        flops = reading.cost.flops + reading.head.flops(len(shares))
        return tokens.clamp_max(shares.shape[1] - 1), Charge(flops=flops, read=inputs.values.numel(), calls=1)
