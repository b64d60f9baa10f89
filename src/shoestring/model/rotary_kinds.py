"""The rotary tables that a model's layers need: layers that turn keys alike share one."""

from typing import Any

from shoestring.model.config import ModelConfig
from shoestring.model.rotary import Rotary


def rotary_key(config: ModelConfig) -> tuple[Any, ...] | None:
    """What rotary tables depend on, of one layer; None where its mixer turns nothing."""
    options = config.token_mixer.options
    if "rope_theta" not in options:
        return None
    scaling = options.get("rope_scaling")
    known = None if scaling is None else tuple(sorted(scaling.items()))
    return config.head_width, options["rope_theta"], options.get("rotary_share", 1.0), known


def rotary_kinds(config: ModelConfig) -> list[ModelConfig]:
    """One layer for each of the rotary tables that a model needs; at least one."""
    found: list[ModelConfig] = []
    kinds = [own for own, _ in config.kinds()]
    for own in kinds:
        key = rotary_key(own)
        if key is not None and key not in [rotary_key(other) for other in found]:
            found.append(own)
    return found or kinds[:1]


def rotary_tables(config: ModelConfig) -> Rotary:
    """The tables of a model's positions: no weights, and so in no checkpoint."""
    # a token mixer without rotary positions takes no such option, and ignores the tables
    options = config.token_mixer.options
    share, scaling = options.get("rotary_share", 1.0), options.get("rope_scaling")
    return Rotary(config.head_width, config.context, options.get("rope_theta", 10000.0), share=share, scaling=scaling)
