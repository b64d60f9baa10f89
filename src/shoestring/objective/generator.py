"""What makes tokens that look as if they could stand there, for a detector to find."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoestring.budget.charge import Charge
from shoestring.contract.batch import Inputs
from shoestring.contract.model import LanguageModel


class TokenGenerator(Protocol):
    """Proposes tokens. It keeps nothing from call to call, so that a resumed run goes on as an uninterrupted one.

    teachers: places of the models that it asks.
    """

    teachers: tuple[str, ...]

    def learn_from(self, models: Sequence[LanguageModel]) -> None:
        """Take the models of `teachers`."""
        ...

    def replace(self, inputs: Inputs, chosen: Tensor, chance: torch.Generator) -> tuple[Tensor, Charge]:
        """(int64 [n], a token for each of the chosen places, in order; what that took).

        chosen: bool [B, T]. chance: of the CPU, for all that is drawn. A token may be the one that stands there.
        """
        ...
