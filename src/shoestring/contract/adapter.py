"""Adapters as every engine sees them: layers that change what a layer below computes, and can be switched off."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar, Protocol

from torch import nn

from shoestring.contract.cost import Cost


class Adapter(nn.Module):
    """A layer in the place of its `base`. Active, it changes what the base computes; else it computes what the base does.

    base: the layer that stood here before.
    reads_base: whether it reads the base's weight while it trains, and not only what the base makes.
    """

    reads_base: ClassVar[bool] = False
    base: nn.Module
    active: bool = True


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """While `model` computes what it did before it was given adapters. Raises: ValueError for a model that has none."""
    found = [module for module in model.modules() if isinstance(module, Adapter)]
    if not found:
        raise ValueError("this model has no adapters to switch off")
    before = [module.active for module in found]
    try:
        for module in found:
            module.active = False
        yield
    finally:
        for module, was in zip(found, before, strict=True):
            module.active = was


class NamedAdapters(Protocol):
    """Adapters of one model, by name: every token of a pass may be read with another."""

    @property
    def names(self) -> Sequence[str]:
        """Those that there are."""
        ...

    def tokens(self, names: Sequence[str | None]) -> AbstractContextManager[None]:
        """While token i of every pass has the adapter names[i], or none; tokens of all rows, row after row.

        Raises: UsageError for an unknown name.
        """
        ...

    def rows(self, names: Sequence[str | None]) -> AbstractContextManager[None]:
        """While row i of every pass has the adapter names[i], or none. Raises: UsageError for an unknown name."""
        ...

    def flops(self, name: str, tokens: int) -> int:
        """Operations that an adapter adds to a pass over so many tokens with it."""
        ...

    def spent(self) -> Mapping[str, Cost]:
        """What each adapter added to the passes since this was last asked: operations, and bytes of its weights that were read."""
        ...
