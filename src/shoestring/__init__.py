"""Shoestring: plan, train, shrink and serve language models within a budget."""

from typing import Any

__version__ = "0.1.0"


def cache(model: Any, policy: str | None = None, **settings: Any) -> Any:
    """A cache for the `generate` of transformers, as `past_key_values`: see `shoestring.decode.transformers_cache.cache`."""
    from importlib import import_module  # by name: this package stands below all of its parts

    return import_module("shoestring.decode.transformers_cache").cache(model, policy, **settings)
