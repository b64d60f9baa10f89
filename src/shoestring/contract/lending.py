"""Layers that compute with weights of another layer, which holds them."""

import copy
from collections.abc import Sequence

from torch import nn

from shoestring.errors import UsageError


class Borrower(nn.Module):
    """A module that computes with a part of another layer. That layer has the weights; this one finds them there, and saves none.

    lender: the layer. part: the name of the part in it.
    """

    def __init__(self, lender: nn.Module, part: str) -> None:
        super().__init__()
        self._lender = (lender,)  # in a tuple: it is no child of this module
        self.part = part

    @property
    def lender(self) -> nn.Module:
        """The layer that has the weights."""
        return self._lender[0]

    @property
    def lent(self) -> nn.Module:
        """The part that is used, whatever stands there now. Raises: UsageError where nothing does."""
        try:
            return self.lender.get_submodule(self.part)
        except AttributeError:
            raise UsageError(
                f"a layer shares '{self.part}' of another, which has no such part now: share after that edit, or fold first"
            ) from None


def lenders(layer: nn.Module) -> list[nn.Module]:
    """The other layers whose weights this one uses, each once."""
    found = {id(part.lender): part.lender for part in layer.modules() if isinstance(part, Borrower)}
    return list(found.values())


def copied(layer: nn.Module) -> nn.Module:
    """A copy of a layer, which borrows from the same layers."""
    return copy.deepcopy(layer, {id(lender): lender for lender in lenders(layer)})


def require_lenders(layers: Sequence[nn.Module]) -> None:
    """Raises: UsageError where one of these layers uses weights of a layer that is not among them."""
    there = {id(layer) for layer in layers}
    for number, layer in enumerate(layers):
        if any(id(lender) not in there for lender in lenders(layer)):
            raise UsageError(
                f"layer {number} of those that would stay uses the weights of one that would go: keep that one too, or fold the "
                "edit that shares weights first"
            )
