"""What a sampler of hidden tokens is made of: the order in which places are filled, and which places a pass computes."""

from typing import NamedTuple, Protocol

from torch import Tensor


class UnmaskingOrder(Protocol):
    """Which of the hidden tokens are filled in first.

    ahead: whether that is known before any pass.
    """

    ahead: bool

    def scores(self, confidence: Tensor, places: Tensor, seed: int, sample: int) -> Tensor:
        """float64 [n]: the places of the highest scores come first.

        confidence: [n], the probability of the token that each place would get; nothing where `ahead`.
        places: [n] int64, in the text. seed: of the request. sample: which of its answers.
        """
        ...


class DenoisingStep(NamedTuple):
    """What is known as a step begins.

    number: of the step, from 0; the first of a block is one that computes all.
    hidden: bool [L], tokens that are hidden now. before: those that were as the step before began.
    coming: bool [L], those that this step will fill, where the order is known ahead; else None.
    """

    number: int
    hidden: Tensor
    before: Tensor
    coming: Tensor | None


class DenoisingCache(Protocol):
    """Which places of the text a pass computes again; keys and values of the others are those that are held.

    ahead: whether it must know the order before.
    """

    ahead: bool

    def due(self, step: DenoisingStep) -> Tensor:
        """bool [L]; all of them where everything is to be computed anew. All that the step fills must be among them."""
        ...
