"""What every layer with an adapter shares."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from shoestring.contract.adapter import Adapter
from shoestring.errors import UsageError
from shoestring.tune import matrix


class Adapted(Adapter):
    """A weight matrix with an adapter: y = adapt(x, base(x)).

    A subclass has its parameters, `adapt`, `added_flops`, and `change` where one matrix computes the same.

    base: any layer that `matrix.is_matrix` takes: plain, quantised in training, packed, or adapted itself.
    """

    roles: ClassVar[Mapping[str, str]] = {}
    """Of its own parameters, by name."""
    shared: nn.Module | None = None
    """What adapters of several matrices have together. It is no part of this module: whoever holds them all has it once."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = matrix.sizes(base)

    @abstractmethod
    def adapt(self, x: Tensor, plain: Tensor) -> Tensor:
        """[..., out], from the input [..., in] and what the base makes of it [..., out]."""

    @abstractmethod
    def added_flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        """Operations of `adapt` on `tokens` vectors. inputs: whether x takes a gradient."""

    def change(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(weight [out, in], bias [out]) of one layer that computes the same, from those of the base; all in float32.

        Raises: UsageError where there is none.
        """
        raise UsageError(
            f"{type(self).__name__} computes more than one matrix can: its model has no form of plain layers, and leaves as "
            "a run's folder alone"
        )

    @property
    def weight(self) -> Tensor:
        """The base's own."""
        found: Tensor = self.base.weight  # type: ignore[assignment]
        return found

    @property
    def bias(self) -> Tensor | None:
        """The base's own."""
        found: Tensor | None = getattr(self.base, "bias", None)
        return found

    @torch.no_grad()
    def computed_weight(self) -> Tensor:
        """[out, in]: the matrix that computes the same, in the type of the base's. Raises: UsageError where there is none."""
        weight = matrix.weight_of(self.base)
        return self._changed()[0].to(weight.dtype)

    @torch.no_grad()
    def computed_bias(self) -> Tensor | None:
        """[out]: what is added beside that matrix."""
        weight, bias = matrix.weight_of(self.base), self._changed()[1]
        return None if bias is None else bias.to(weight.dtype)

    def _changed(self) -> tuple[Tensor, Tensor | None]:
        bias = matrix.bias_of(self.base)
        return self.change(matrix.weight_of(self.base).float(), None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.base(x)
        return self.adapt(x, plain) if self.active else plain

    def flops(self, tokens: int, backward: bool, inputs: bool) -> int:
        """Operations on `tokens` vectors, as `contract.cost.linear` counts them."""
        whole = matrix.flops(self.base, tokens, backward, inputs)
        return whole + self.added_flops(tokens, backward, inputs)

    @property
    def trained(self) -> bool:
        """Whether the adapter's own parameters take gradients."""
        return any(parameter.requires_grad for parameter in self.own().values())

    def own(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters, without the base's."""
        return {name: parameter for name, parameter in self.named_parameters() if not name.startswith("base.")}

    def merged(self) -> nn.Module:
        """A plain layer that computes the same. Raises: UsageError where there is none."""
        return matrix.plain(self.base, self.computed_weight(), self.computed_bias())


def product(trained: bool, backward: bool, inputs: bool, size: int) -> int:
    """Operations of a product with a matrix: forward, and backward for the matrix where it is trained and for its inputs.

    size: tokens times rows times columns.
    """
    return (1 + (backward and trained) + (backward and inputs)) * 2 * size
