"""How what a matrix reads is rounded: the contract of activations, and what was settled for one matrix."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shoestring.config import Choice
from shoestring.errors import ShoestringError, UsageError
from shoestring.quantise.kronecker import Kronecker

SEEN = 512
"""Tokens of calibration text of which what a matrix reads is kept, at most."""


class InputRounding(ABC):
    """Rounds what matrices read. A method of the kind 'activations' of the engine 'quantise'.

    reads: whether it looks at text beforehand. parameters: the names of what `settle` gives.
    bits: of a number.
    """

    reads: ClassVar[bool] = False
    parameters: ClassVar[tuple[str, ...]] = ()
    bits: int

    @property
    @abstractmethod
    def choice(self) -> Choice:
        """Its name and all its options."""

    @property
    def integer(self) -> bool:
        """Whether the kernel for integers with a scale a row rounds so by itself: 8 bits, a scale a token."""
        return False

    def settle(self, seen: Tensor) -> dict[str, Tensor]:
        """What is fixed beforehand for a matrix. seen: float32 [tokens, in], what it reads."""
        return {}

    @abstractmethod
    def round(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """What x [..., in] is rounded to, in its type. A number that is not finite gives such numbers in its token."""


@dataclass(frozen=True)
class RoundedInputs:
    """What was settled for one matrix. Raises: ShoestringError where the two do not fit each other."""

    rounding: InputRounding
    parameters: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if set(self.parameters) != set(self.rounding.parameters):
            raise ShoestringError(f"the rounding '{self.rounding.choice.name}' has not these parameters")
        for name, one in self.parameters.items():
            if one.dtype != torch.float32 or one.shape != (2,) or not bool(one.isfinite().all()) or one[0] > one[1]:
                raise ShoestringError(f"the {name} of a rounding is two finite numbers, the lower first")

    def __call__(self, x: Tensor) -> Tensor:
        return self.rounding.round(x, self.parameters)

    def before(self, pair: Kronecker | None) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        """A hook for a plain layer of all the weights, that rounds what it reads.

        pair: the transform P of what is read, where the rounding is of P^T x: x becomes P^-T x~.
        """
        back = None if pair is None else pair.inverse

        def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            if pair is None or back is None:
                return (self(given[0]), *given[1:])
            return (back.times(self(pair.times(given[0]))), *given[1:])

        return hook


def restored_inputs(described: Any, parameters: Mapping[str, Tensor]) -> RoundedInputs:
    """What {'name': ..., options} describes. Raises: ShoestringError where there is none."""
    if not isinstance(described, dict) or not isinstance(described.get("name"), str):
        raise ShoestringError("a matrix does not say how its inputs are rounded")
    options = {key: value for key, value in described.items() if key != "name"}
    try:
        made = Choice.of("quantise", described["name"], kind="activations", **options).build()
    except (UsageError, ValueError, TypeError) as error:
        raise ShoestringError(
            f"its inputs are rounded in no way of this program: {' '.join(str(error).split())}"
        ) from None
    if made is None:
        raise ShoestringError("its inputs are said to be rounded, and not how")
    return RoundedInputs(made, parameters)
