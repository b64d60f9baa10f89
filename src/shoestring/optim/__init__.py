"""Optimisers, each a `torch.optim.Optimizer`, and the partition that gives every parameter to exactly one of them.

    from shoestring.optim import AdamW, Muon, partition
    optimizer = partition(model, Muon, AdamW).build()

Every optimiser of the registry can be imported from here by the name of its class. Its module is loaded when it is asked
for, so a new optimiser is in no list.
"""

from typing import Any

from shoestring.errors import did_you_mean
from shoestring.method import methods
from shoestring.optim.partition import partition as partition


def _classes() -> dict[str, Any]:
    return {card.target.__name__: card.target for card in methods("optim")}


def __getattr__(name: str) -> Any:
    if not name[:1].isupper():  # a submodule, or what Python itself asks for: neither loads the registry
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    classes = _classes()
    if name not in classes:
        raise AttributeError(f"no optimiser is named '{name}': {did_you_mean(name, classes)}")
    return classes[name]


def __dir__() -> list[str]:
    return sorted(["partition", *_classes()])
