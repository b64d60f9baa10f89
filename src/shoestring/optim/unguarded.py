"""The bookkeeping of torch's optimisers without its guard against torch's compiler, which imports the compiler."""

import inspect
from typing import Any

import torch

_OPTIMIZER = torch.optim.Optimizer
_ADD, _STATE, _LOAD, _ZERO = (
    inspect.unwrap(function)
    for function in (
        _OPTIMIZER.add_param_group,
        _OPTIMIZER.state_dict,
        _OPTIMIZER.load_state_dict,
        _OPTIMIZER.zero_grad,
    )
)


class Unguarded(torch.optim.Optimizer):
    """A base to name before torch's: where nothing is compiled, an optimiser does without the compiler.

    torch marks these functions as ones that its compiler is not to enter. The mark imports the compiler when the first of
    them is called, 1.4 s of one core; here it does so only within what is being compiled.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _ADD(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = _STATE(self)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        _LOAD(self, state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        if torch.compiler.is_compiling():
            super().zero_grad(set_to_none)
        else:
            _ZERO(self, set_to_none)
