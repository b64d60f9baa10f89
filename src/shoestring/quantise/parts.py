"""The four parts of a quantisation: a transform, bits, a solver and a format. Formats are in `format.py`; here are the others."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Batch
from shoestring.contract.model import LanguageModule
from shoestring.quantise.allocation import BitAllocation
from shoestring.quantise.format import CodeFormat, Encoded
from shoestring.quantise.kronecker import Kronecker

Over = Callable[[], bool]
"""Whether the budget is spent."""


def never() -> bool:
    """For work without a budget."""
    return False


class Solver(Protocol):
    """Decides the code of each weight. A method of the kind 'solver'.

    reads: whether it looks at what the layer reads.
    """

    reads: bool

    def __call__(self, weight: Tensor, format: CodeFormat, hessian: Tensor | None) -> Encoded:
        """The encoded matrix.

        weight: float32 [out, in].
        hessian: float32 [in, in], the mean of x x^T over the tokens x that the layer reads; None: not known.
        Raises: ShoestringError, UsageError where the format cannot hold the matrix.
        """
        ...


@dataclass(frozen=True)
class Changed:
    """What a transform made of a model's weights.

    tensors: new values by the names of parameters. notes: a line each of what it could not do. spent: what finding them took.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    spent: Charge = NOTHING


class Transform:
    """A change that leaves what a model computes, and makes it lose less when it is rounded. A method of the kind 'transform'.

    reads: whether it looks at text. Either of the two may be left as it is.
    """

    reads: ClassVar[bool] = False

    def of_model(self, model: LanguageModule, text: Sequence[Batch], format: CodeFormat, over: Over) -> Changed:
        """New weights of the model, which stays as it is. Raises: UsageError where the model has no such form."""
        return Changed({})

    def of_matrix(self, weight: Tensor, hessian: Tensor | None, format: CodeFormat, over: Over) -> Kronecker | None:
        """The transform of what one layer reads, done where the model runs; None: none.

        weight, hessian: as a `Solver` takes them.
        """
        return None


class Bits(ABC):
    """Decides how many bits the codes of each matrix have. A method of the kind 'bits'.

    reads: whether it measures losses on text.
    """

    reads: ClassVar[bool] = False

    @abstractmethod
    def choose(self, allocation: BitAllocation) -> list[int]:
        """The bits of each matrix, of `allocation.widths`, within its limit. Raises: UsageError where nothing fits."""
