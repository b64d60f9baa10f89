"""What goes through a model as it reads text: the inputs of chosen modules, and layer after layer in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.budget.charge import NOTHING, Charge
from shoestring.contract.batch import Batch
from shoestring.contract.cost import Shape
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError

Look = Callable[[str, Tensor], None]
"""Is given the name of a module and what it reads: [B, T, features], detached."""


@contextmanager
def watching(model: nn.Module, names: Sequence[str], look: Look) -> Iterator[None]:
    """Have `look` told what these modules read, while the block runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def told(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            look(name, inputs[0].detach())

        return told

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def observe(model: LanguageModule, text: Sequence[Batch], names: Sequence[str], look: Look) -> Charge:
    """Have `look` told what these modules read of a text, in one pass over it. Returns what that took.

    Raises: UsageError without text.
    """
    _require(text)
    model.cost(Shape(1, 1))  # a wrapped model reads a token to know its costs, which nobody is to watch
    spent = NOTHING
    with watching(model, names, look):
        for batch in text:
            reading = model.read(batch.inputs.to(model.device))
            spent += Charge(flops=reading.cost.flops, read=batch.targets.numel(), calls=1)
    return spent


class Walk:
    """Goes through a model layer after layer, holding what the layers so far have made of the text and nothing else.

    A layer may be changed where it stands before `advance`: the next one reads what the changed layer makes.

        walk = Walk(model, text)
        for layer in walk:
            with watching(model, [...], look):
                walk.run()      # the layer reads its inputs
            ...                 # change the layer
        walk.spent

    The text's hidden states are held once: tokens x width numbers.

    Raises: UsageError without text, and for layers of a ladder.
    """

    def __init__(self, model: LanguageModule, text: Sequence[Batch]) -> None:
        _require(text)
        self._model, self._names = model, list(model.anatomy().layers)
        for name in self._names:
            if getattr(model.get_submodule(name), "carries", False):
                raise UsageError(
                    f"{name} is told more than hidden states, which the layers before it change: it cannot be walked"
                )
        self._hidden: list[Tensor] = []
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = [[] for _ in self._names]
        self._layer = -1
        self.spent = NOTHING
        places = sum(batch.targets.numel() for batch in text)
        shapes = [Shape(batch.rows, batch.inputs.length, outputs=0) for batch in text]
        flops = sum(model.cost(shape).flops for shape in shapes)
        self._each = Charge(flops=flops // len(self._names), read=places // len(self._names))
        for batch in text:
            self._record(batch)
        self.spent += Charge(flops=flops, read=places, calls=len(text))

    def __iter__(self) -> Iterator[str]:
        """The names of the layers, in order; going on to the next has this one read, as it is then."""
        for place, name in enumerate(self._names):
            self._layer = place
            yield name
            if place + 1 < len(self._names):
                self._hidden = self.run()
        self._layer = -1

    @torch.no_grad()
    def run(self) -> list[Tensor]:
        """What the present layer makes of its inputs, a batch each."""
        layer = self._model.get_submodule(self._names[self._layer])
        made = []
        for hidden, (rest, named) in zip(self._hidden, self._calls[self._layer], strict=True):
            found = layer(hidden, *rest, **named)
            made.append(found if isinstance(found, Tensor) else found[0])
        self.spent += self._each
        return made

    @torch.no_grad()
    def _record(self, batch: Batch) -> None:
        """Read a batch once, and keep what the first layer is given and what else each layer is told."""
        handles = []
        for place, name in enumerate(self._names):

            def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], place: int = place) -> None:
                if not given:
                    raise UsageError(
                        "the layers of this model are not given their hidden states first: it cannot be walked"
                    )
                if place == 0:
                    self._hidden.append(given[0].detach())
                self._calls[place].append((given[1:], named))

            handles.append(self._model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True))
        try:
            self._model.read(batch.inputs.to(self._model.device))
        finally:
            for handle in handles:
                handle.remove()


def _require(text: Sequence[Batch]) -> None:
    if not text:
        raise UsageError("this edit looks at text to decide: none was given to it")
