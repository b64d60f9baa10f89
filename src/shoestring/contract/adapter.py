"""Adapters as every engine sees them: layers that change what a layer below computes, and can be switched off."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class Adapter(nn.Module):
    """A layer in the place of its `base`. Active, it changes what the base computes; else it computes what the base does.

    base: the layer that stood here before.
    """

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
