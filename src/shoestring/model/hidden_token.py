"""What a model reads where a token is not shown."""

import torch
from torch import Tensor, nn

from shoestring.contract.batch import HIDDEN


class HiddenToken(nn.Module):
    """A learnt vector [width] in place of the embedding of `HIDDEN`. It is no row of the embedding, so a head that is tied to that
    cannot predict it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))
        self.draw()

    def draw(self) -> None:
        """Its first value, from torch's global generator: as large as a token's embedding."""
        nn.init.normal_(self.vector, std=0.5 * len(self.vector) ** -0.5)

    def placed(self, values: Tensor, vectors: Tensor) -> Tensor:
        """The vectors [B, T, width], with this one where `values` [B, T] are HIDDEN."""
        return torch.where((values == HIDDEN)[..., None], self.vector.to(vectors.dtype), vectors)
