"""Adapters merged with the matrices that they stand beside: a model that only writes computes less so, and may be read natively."""

from typing import Any

from torch import nn

from shoestring.contract.model import LanguageModel
from shoestring.errors import UsageError
from shoestring.tune.adapted import Adapted
from shoestring.tune.matrix import is_transposed


def merge_adapters(model: LanguageModel) -> int:
    """Put plain layers in the place of those with adapters, and return how many.

    What stands beside packed weights, or computes more than one matrix can, is left as it is.
    """
    if not isinstance(model, nn.Module):
        return 0
    found = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    merged = 0
    for name, module in found.items():
        if any(other != name and name.startswith(f"{other}.") for other in found) or not _plain(module):
            continue  # the outermost take the inner along
        try:
            made = module.merged()
        except UsageError:
            continue
        model.set_submodule(name, made.train(module.training).requires_grad_(False))
        merged += 1
    changed: Any = getattr(model, "changed", None)
    if merged and changed is not None:
        changed()
    return merged


def _plain(module: nn.Module) -> bool:
    """Whether what is beneath all adapters is a plain matrix."""
    bottom = module
    while isinstance(bottom, Adapted):
        bottom = bottom.base
    return type(bottom) is nn.Linear or is_transposed(bottom)
