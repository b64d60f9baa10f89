"""Several adapters at once: a row of a batch each its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shoestring.contract.cost import Shape
from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError, did_you_mean
from shoestring.tune.adapted import Adapted
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit
from shoestring.tune.matrix import sizes


class Routed(nn.Module):
    """A matrix with adapters by name. The base's product is made once for all rows; then each adapter has its rows."""

    def __init__(self, base: nn.Module, rows: "AdapterRows") -> None:
        super().__init__()
        self.base, self.adapters = base, nn.ModuleDict()
        self.__dict__["rows"] = rows
        self.in_features, self.out_features = sizes(base)

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.base(x)
        chosen: AdapterRows = self.rows  # type: ignore[assignment]
        names = chosen.names
        if not names:
            return plain
        if len(names) != x.shape[0]:
            raise UsageError(f"{len(names)} adapters were named for a batch of {x.shape[0]} rows: name one a row")
        made = plain
        for name in dict.fromkeys(names):
            if name is None or name not in self.adapters:
                continue
            mine = torch.tensor([place for place, other in enumerate(names) if other == name], device=x.device)
            adapter: Adapted = self.adapters[name]  # type: ignore[assignment]
            made = made.index_copy(0, mine, adapter.adapt(x[mine], plain[mine]).to(plain.dtype))
        return made


class AdapterRows:
    """Which adapter each row of the batch has."""

    names: tuple[str | None, ...] = ()


class Several:
    """A model with adapters by name, of which any row of a batch may have one.

        several = Several(model)
        several.add("poet", *read)                       # an edit and its decision
        with several.rows(["poet", None, "clerk"]):
            model.read(inputs)

    model: it is changed in place. Adapters must be beside matrices, as those of `AdapterEdit` are; they are not trained here.
    """

    def __init__(self, model: LanguageModule) -> None:
        self.model, self._rows, self.names = model, AdapterRows(), list[str]()

    def add(self, name: str, edit: AdapterEdit, decision: Decision) -> None:
        """Take in an adapter. Raises: UsageError where there is one of that name, or it shares parameters between layers."""
        if name in self.names:
            raise UsageError(f"there is an adapter named '{name}' already")
        if not name or "." in name:
            raise UsageError(f"'{name}' cannot be an adapter's name: it is a word without a dot")
        places = set(decision.values[CHOSEN])
        for full in decision.tensors:
            if full.rpartition(".")[0] not in places:
                raise UsageError(
                    f"an adapter of {edit.name} shares parameters between layers: it cannot stand beside others"
                )
        for place in decision.values[CHOSEN]:
            found = self.model.get_submodule(place)
            routed = found if isinstance(found, Routed) else Routed(found, self._rows)
            own = {
                full.rpartition(".")[2]: tensor.clone()
                for full, tensor in decision.tensors.items()
                if full.rpartition(".")[0] == place
            }
            adapter = edit.place(routed.base, own, decision.values)
            adapter.requires_grad_(False).eval()
            routed.adapters[name] = adapter
            self.model.set_submodule(place, routed)
        self.names.append(name)
        self.model.changed()

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """While row i of every batch has the adapter names[i], or none. Raises: UsageError for an unknown name."""
        for name in names:
            if name is not None and name not in self.names:
                raise UsageError(f"no adapter is named '{name}': {did_you_mean(name, self.names)}")
        self.model.cost(Shape(1, 1))  # a model may have to read a token to know its cost: before rows have names
        before, self._rows.names = self._rows.names, tuple(names)
        try:
            yield
        finally:
            self._rows.names = before


def decision_of(model: nn.Module, edit: AdapterEdit, decision: Decision) -> Decision:
    """What would place the adapters of a trained model again, their parameters as they are now.

    decision: that they were made by.
    """
    tensors = dict(decision.tensors)
    for name in decision.values[CHOSEN]:
        layer = model.get_submodule(name)
        if not isinstance(layer, edit.kind):
            raise UsageError(f"{name} has no adapter of the method {edit.name}")
        tensors |= {f"{name}.{key}": parameter.detach() for key, parameter in layer.own().items()}
    return Decision(dict(decision.values), tensors)
