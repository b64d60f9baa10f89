"""Which parameters are synchronised together, and at which steps."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from shoestring.errors import UsageError
from shoestring.method import Count

Named = tuple[str, nn.Parameter]


@runtime_checkable
class PartOfModel(Protocol):
    """Stands for a model of which another process may have the rest: it cuts the whole, and gives what is here."""

    def cut(self, fragments: "Fragments") -> list[list[Named]]:
        """As `Fragments.of`; a fragment of which nothing is here is empty."""
        ...


@dataclass(frozen=True)
class Fragments:
    """A model cut into `count` fragments (P in the paper), each of which is exchanged by itself, at its own steps.

    Douillard et al. (2025), Streaming DiLoCo with overlapping communication, arXiv:2501.18512. 'sequential' gives each
    fragment consecutive layers; 'strided' gives layer i to fragment i mod P; 'whole' is the model as one (DiLoCo).

    The layers are the children of the longest `nn.ModuleList` that lies in no other. The paper leaves the parameters
    outside them open; here they go, the largest first, each to the fragment that has the fewest elements by then (the
    first of equals), so that no exchange is much larger than another. A tied parameter counts once, under its first
    name; parameters that are not trained are left out.

    Raises: ValueError for a count that the kind cannot have.
    """

    kind: Literal["whole", "sequential", "strided"] = "whole"
    count: Count = 1

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "sequential", "strided"):
            raise ValueError(f"kind must be whole, sequential or strided, not {self.kind!r}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")
        if self.kind == "whole" and self.count != 1:
            raise ValueError(f"count = {self.count}, but a whole model is one fragment: choose sequential or strided")

    def of(self, model: nn.Module) -> list[list[Named]]:
        """(name, parameter) of each fragment, in the model's order.

        Raises: UsageError for more fragments than layers and one, or where one would be empty.
        """
        if isinstance(model, PartOfModel):
            return model.cut(self)
        trained = {id(parameter): (name, parameter) for name, parameter in trained_parameters(model)}
        order = list(trained)
        layers = _layers(model)
        if self.count > len(layers) + 1:
            raise UsageError(
                f"{self.count} fragments are too many: {type(model).__name__} has {len(layers)} layers, "
                f"enough for {len(layers) + 1}"
            )
        owner: dict[int, int] = {}
        for index, layer in enumerate(layers):
            for parameter in layer.parameters():
                if id(parameter) in trained:
                    owner.setdefault(id(parameter), self._fragment(index, len(layers)))
        sizes = [0] * self.count
        for key, fragment in owner.items():
            sizes[fragment] += trained[key][1].numel()
        outside = sorted((key for key in order if key not in owner), key=lambda key: -trained[key][1].numel())
        for key in outside:
            owner[key] = sizes.index(min(sizes))
            sizes[owner[key]] += trained[key][1].numel()
        cut: list[list[Named]] = [[] for _ in range(self.count)]
        for key in order:
            cut[owner[key]].append(trained[key])
        if not all(cut):
            raise UsageError(f"{type(model).__name__} has too few parameters for {self.count} fragments")
        return cut

    def _fragment(self, layer: int, layers: int) -> int:
        if self.kind == "strided":
            return layer % self.count
        # the fragment p for which layers * p // count <= layer < layers * (p + 1) // count
        return ((layer + 1) * self.count - 1) // layers

    def offsets(self, every: int) -> list[int]:
        """t_p of each fragment: it is due after inner step t (from 1) where (t - t_p) mod every = 0.

        They are spread evenly over `every` (H in the paper), the last at H itself: a whole model is due at H, 2 H ...
        Raises: UsageError where there are more fragments than steps.
        """
        if self.count > every:
            raise UsageError(f"{self.count} fragments cannot each have a step of their own among every {every}")
        return [(fragment + 1) * every // self.count % every for fragment in range(self.count)]


def trained_parameters(model: nn.Module) -> list[Named]:
    """(name, parameter) of what is trained, once each. Raises: UsageError where there is none."""
    found = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not found:
        raise UsageError(f"{type(model).__name__} has no trainable parameter")
    return found


def _layers(model: nn.Module) -> list[nn.Module]:
    """The children of the longest outermost `nn.ModuleList`; the first of equals."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [
        module
        for name, module in lists.items()
        if not any(name != other and (name.startswith(f"{other}.") or other == "") for other in lists)
    ]
    longest = max(outermost, key=len, default=None)
    return [] if longest is None else list(longest)
