"""The inner optimiser of a worker that comes and goes: its state given, taken over, or begun anew."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from shoestring.optim.state import flatten_state, restore_state
from shoestring.sync.elastic.healing import State


class InnerState:
    """The `SharedInnerState` of an `ElasticLoop`, which must be as it was made: that state is what `reset` goes back to."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        tensors, record = flatten_state(optimizer)
        self._blank = {name: tensor.clone() for name, tensor in tensors.items()}, record

    def export_state(self) -> State:
        """The state now: live tensors, to be cloned before the next step."""
        return flatten_state(self.optimizer)

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what another worker's `export_state` gave. Raises: ShoestringError where it is of another optimiser."""
        restore_state(self.optimizer, dict(tensors), dict(values))
        self.optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Begin anew."""
        self.load_state(*self._blank)
