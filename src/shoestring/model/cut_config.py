"""The configuration of a model after its weights were cut: it says what they are again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shoestring.model.config import ModelConfig
from shoestring.model.layout import places

SIZES = ("hidden", "heads", "key_value_heads")

Entry = int
"""Where a size stands: number of the pattern that gives it, or -1: the configuration itself."""


def cut_config(
    config: ModelConfig,
    sizes: Mapping[str, int],
    by_layer: Sequence[Mapping[str, int]],
    mixers: Sequence[Mapping[str, Mapping[str, Any]]],
) -> ModelConfig:
    """The configuration with the sizes that the layers have. Of the layers that one entry speaks for, the first has the word.

    sizes: of the whole model, by key. by_layer: what there is of `SIZES`, of each layer. mixers: of each layer, options of its
    'token_mixer' and 'channel_mixer' that say what sizes these have; nothing where the sizes follow from the model's.
    """
    own: dict[str, Any] = dict(sizes)
    patterns: list[dict[str, Any]] = [{} for _ in config.pattern]
    done: set[tuple[str, Entry]] = set()
    for layer, (found, options) in enumerate(zip(by_layer, mixers, strict=True)):
        entries = _entries(config, layer)
        for key, size in found.items():
            entry = entries.get(key, -1)
            if (key, entry) in done:
                continue
            done.add((key, entry))
            changed = own if entry < 0 else patterns[entry]
            changed[key] = size
            if key == "heads" and entry >= 0:  # it would be worked out from the width, which may be cut too
                changed["head_width"] = config.layer(layer).head_width
        for part, given in options.items():
            entry = entries.get(part, -1)
            if (part, entry) not in done:
                done.add((part, entry))
                choice = getattr(config if entry < 0 else config.pattern[entry], part)
                (own if entry < 0 else patterns[entry])[part] = choice.with_options(**given)
    pattern = tuple(replace(one, **changes) for one, changes in zip(config.pattern, patterns, strict=True))
    return replace(config, **own, pattern=pattern)


def _entries(config: ModelConfig, layer: int) -> dict[str, Entry]:
    """Which pattern gives each key of a layer; a key that none gives is the configuration's. As `ModelConfig.layer` has it."""
    found: dict[str, Entry] = {}
    for order, pattern in enumerate(config.pattern):
        if layer in places(pattern.at, config.layers):
            found |= dict.fromkeys(pattern.changes(), order)
    if "channel_mixer" in found and "hidden" in config.following():
        found.setdefault("hidden", found["channel_mixer"])
    if "heads" in found:
        found.setdefault("key_value_heads", found["heads"])
    return found
