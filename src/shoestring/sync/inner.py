"""What an outer loop asks of the optimiser inside it: between its steps, weights are set by another."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from shoestring.errors import UsageError


@runtime_checkable
class InnerOptimizer(Protocol):
    """What an optimiser may say of itself, as those of `shoestring.optim` do.

    state_holds_weights: its state has weights of its own, which stay behind where a parameter is set. orthogonal_updates:
    it moves matrices by the polar factor of a momentum, as Muon does.
    """

    @property
    def state_holds_weights(self) -> bool: ...

    @property
    def orthogonal_updates(self) -> bool: ...

    def anchor(self) -> None:
        """Measure now what is taken from the first weights: all workers have the same ones still."""
        ...

    def forget(self, parameter: Tensor) -> None:
        """Empty the state of a parameter, save what `anchor` put there."""
        ...


def is_orthogonal(inner: torch.optim.Optimizer | None) -> bool:
    """Whether it moves matrices by polar factors; one that does not say does so where it is torch's own Muon."""
    if isinstance(inner, InnerOptimizer):
        return inner.orthogonal_updates
    return isinstance(inner, torch.optim.Muon)


def prepare(inner: torch.optim.Optimizer | None) -> None:
    """Make an optimiser ready for weights that are set between its steps.

    Raises: UsageError where its state has weights of its own. One that does not say has them where it has `eval`, which is
    how optimisers that train on other weights than they keep are told to swap the two.
    """
    holds = inner.state_holds_weights if isinstance(inner, InnerOptimizer) else hasattr(inner, "eval")
    if holds:
        raise UsageError(
            "the inner optimiser keeps weights of its own in its state (Schedule-Free does), "
            "which an outer loop would leave behind: choose another, or train without an outer loop"
        )
    if isinstance(inner, InnerOptimizer):
        inner.anchor()


def forget(inner: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Empty the state of a parameter whose weights were set anew."""
    if isinstance(inner, InnerOptimizer):
        inner.forget(parameter)
    else:
        inner.state.get(parameter, {}).clear()
