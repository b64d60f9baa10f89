"""Several adapters at once: a row of a batch, or a token of a pass, each its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.contract.cost import Cost, Shape
from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError, did_you_mean
from shoestring.tune.adapted import Adapted
from shoestring.tune.adapter_edit import CHOSEN, AdapterEdit


@dataclass(frozen=True)
class ChosenPlaces:
    """Which tokens or rows of a pass have which adapter.

    count: of all. by_token: whether tokens are counted, and not rows. places: of each adapter, the numbers of its own.
    """

    count: int
    by_token: bool
    places: Mapping[str, Tensor]


class Several:
    """A model with adapters by name, of which any row of a batch may have one. A `contract.adapter.NamedAdapters`.

        several = Several(model)
        several.add("poet", *read)                       # an edit and its decision
        with several.rows(["poet", None, "clerk"]):
            model.read(inputs)

    The product with the base's matrix is made once for all; then each adapter changes what its own rows have of it. While no row
    has an adapter, the model is what it was, and as fast.

    model: its parts stay as they are. Adapters must be beside matrices, as those of `AdapterEdit` are; they are not trained here.
    """

    def __init__(self, model: LanguageModule) -> None:
        self.model = model
        self._adapters: dict[str, dict[str, Adapted]] = {}
        """By name, and then by that of the matrix."""
        self._flops: dict[str, int] = {}
        self._passes: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """Of the adapters that there are."""
        return list(self._adapters)

    def add(self, name: str, edit: AdapterEdit, decision: Decision) -> None:
        """Take in an adapter. Raises: UsageError where there is one of that name."""
        if name in self._adapters:
            raise UsageError(f"there is an adapter named '{name}' already")
        if not name:
            raise UsageError("an adapter needs a name")
        made = edit.layers(self.model, decision)
        for adapter in made.values():
            adapter.requires_grad_(False).eval()
            if adapter.shared is not None:
                adapter.shared.requires_grad_(False)
        self._adapters[name] = made

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """While row i of every batch has the adapter names[i], or none. Raises: UsageError for an unknown name."""
        with self._choose(names, by_token=False):
            yield

    @contextmanager
    def tokens(self, names: Sequence[str | None]) -> Iterator[None]:
        """While token i of every pass has the adapter names[i], or none; tokens of all rows, row after row.

        Raises: UsageError for an unknown name.
        """
        with self._choose(names, by_token=True):
            yield

    def flops(self, name: str, tokens: int) -> int:
        """Operations that an adapter adds to a pass over so many tokens with it."""
        return sum(adapter.added_flops(tokens, False, False) for adapter in self._adapters[name].values())

    def spent(self) -> dict[str, Cost]:
        """What each adapter added since this was last asked: operations, and bytes of its weights that were read."""
        found = {
            name: Cost(self._flops.get(name, 0), passes * self._bytes(name)) for name, passes in self._passes.items()
        }
        self._flops, self._passes = {}, {}
        return found

    def _bytes(self, name: str) -> int:
        layers = self._adapters[name].values()
        shared = {id(layer.shared): layer.shared for layer in layers if layer.shared is not None}.values()
        held = [
            *(own for layer in layers for own in layer.own().values()),
            *(p for one in shared for p in one.parameters()),
        ]
        return sum(parameter.nbytes for parameter in held)

    @contextmanager
    def _choose(self, names: Sequence[str | None], by_token: bool) -> Iterator[None]:
        wanted = [name for name in dict.fromkeys(names) if name is not None]
        for name in wanted:
            if name not in self._adapters:
                raise UsageError(f"no adapter is named '{name}': {did_you_mean(name, self.names)}")
        if not wanted:
            yield
            return
        self.model.cost(Shape(1, 1))  # a model may have to read a token to know its cost: before tokens have names
        device = self.model.device
        places = {
            name: torch.tensor([place for place, other in enumerate(names) if other == name], device=device)
            for name in wanted
        }
        chosen = ChosenPlaces(len(names), by_token, places)
        adapted = dict.fromkeys(place for name in wanted for place in self._adapters[name])
        # with somebody who listens, a pass goes module by module
        handles = [
            self.model.get_submodule(place).register_forward_hook(self._hook(place, chosen)) for place in adapted
        ]
        for name in wanted:
            self._passes[name] = self._passes.get(name, 0) + 1
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, place: str, chosen: ChosenPlaces) -> Any:
        """What changes the outputs of one matrix."""
        own = {name: self._adapters[name][place] for name in chosen.places if place in self._adapters[name]}

        def change(_: nn.Module, given: tuple[Tensor], plain: Tensor) -> Tensor:
            x, made = given[0], plain
            if chosen.by_token:
                x, made = x.reshape(-1, x.shape[-1]), made.reshape(-1, made.shape[-1])
            if len(x) != chosen.count:
                what = "tokens" if chosen.by_token else "rows"
                raise UsageError(f"{chosen.count} adapters were named for a batch of {len(x)} {what}: name one each")
            before = made
            for name, adapter in own.items():
                mine = chosen.places[name]
                taken = x[mine]
                made = made.index_copy(0, mine, adapter.adapt(taken, before[mine]).to(before.dtype))
                count = taken.numel() // taken.shape[-1]
                self._flops[name] = self._flops.get(name, 0) + adapter.added_flops(count, False, False)
            return made.view(plain.shape)

        return change


def decision_of(model: nn.Module, edit: AdapterEdit, decision: Decision) -> Decision:
    """What would place the adapters of a trained model again, their parameters as they are now.

    decision: that they were made by.
    """
    for name in decision.values[CHOSEN]:
        if not isinstance(model.get_submodule(name), edit.kind):
            raise UsageError(f"{name} has no adapter of the method {edit.name}")
    return edit.trained(decision, dict(model.named_parameters()))
