"""How surgery sees any model: its axes, each with every weight that it slices."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Slice(NamedTuple):
    """Where one weight lies along an axis: index i of the axis is [start + i unit, start + (i + 1) unit) of dimension `dim`.

    name: of the parameter or buffer in the model.
    """

    name: str
    dim: int
    start: int = 0
    unit: int = 1


@dataclass(frozen=True)
class Axis:
    """A direction in which a model can be made smaller or larger.

    kind: 'layer', 'width' (of the residual stream), 'hidden' (of a channel mixer), 'head' (query heads), 'key_value_head',
    'expert', 'ssm_state', 'vocabulary': an open set, declared by the model's own anatomy.
    layer: the number of the layer; None for an axis of the whole model.
    size: how many indices it has.
    slices: every weight along it. Of the axis 'layer' there are none: a layer goes as a whole.
    group: indices that must go together: of query heads, as many as share a key and value head.
    runs: parts of the axis, of equal length and one after the other, of which as many indices stay each: heads that share something
    with those of their own part.
    """

    kind: str
    layer: int | None
    size: int
    slices: tuple[Slice, ...] = ()
    group: int = 1
    runs: int = 1


class Matrix(NamedTuple):
    """A weight matrix in the layers of a model. name: of its module. layer: number. weight: [out, in], or stacked [E, out, in]."""

    name: str
    layer: int
    weight: Tensor


class Anatomy(Protocol):
    """The parts of a model, by name."""

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        ...

    @property
    def layers(self) -> Sequence[str]:
        """The names of the layers' modules, in order."""
        ...

    @property
    def embedding(self) -> str:
        """The name of the embedding's module."""
        ...

    @property
    def head(self) -> str | None:
        """The name of the head's module; None where the embedding is the head too."""
        ...

    def axes(self, kind: str) -> list[Axis]:
        """The axes of a kind, in order of the layers; none where the model has no such axis."""
        ...

    def matrices(self) -> Iterator[Matrix]:
        """The weight matrices of the layers, in order; embedding and head are not among them."""
        ...

    def resized(self) -> None:
        """Have the model's own sizes say what its weights have, after they were cut along an axis."""
        ...

    def keep_layers(self, numbers: Sequence[int]) -> None:
        """Leave these layers, in this order, in the model. Raises: UsageError where that cannot be."""
        ...

    def copy_layers(self, numbers: Sequence[int]) -> None:
        """Put a copy of each of these layers behind it. Raises: UsageError where that cannot be."""
        ...


@runtime_checkable
class SwapsResiduals(Protocol):
    """What the anatomy of a native model can do beside: join the parts of some layers in another way."""

    def swap_residuals(self, at: str, residual: str) -> None:
        """Give layers that add their parts one after the other another residual, which has no weights.

        at: the layers, as a pattern of [model] names them. residual: the method.
        Raises: UsageError for layers that are not there, or are joined in another way.
        """
        ...


@runtime_checkable
class ConvertsAttention(Protocol):
    """What the anatomy of a native model can do beside: put other token mixers in place of attention."""

    def mixers_from_attention(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, nn.Module]:
        """By layer, new token mixers that share the projections of the attention that stands there; the model stays as it is.

        at: the layers, as a pattern of [model] names them. mixer: what they get: a method that takes the options of attention.
        options: what else it takes. Raises: UsageError for layers that are not there, or have no plain attention.
        """
        ...

    def convert_attention(self, at: str, mixer: str, options: Mapping[str, Any]) -> dict[int, nn.Module]:
        """As `mixers_from_attention`, and put them in the model, which says so from then on."""
        ...
