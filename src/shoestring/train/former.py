"""Configurations of earlier versions, in the words of this one."""

from collections.abc import Mapping
from typing import Any

from shoestring.config import Tree

SECTIONS = {
    "lowbit": 'a number format to train for is an edit: --edits ternary, or [[edits]] with name = "ternary"; options of it go '
    "beside the name, --edits.ternary.activations int8",
    "quantise": "when weights begin to be quantised is an option of the edit: --edits.ternary.active late, or active = "
    '{name = "late"} in [[edits]]',
    "start": "the run to begin from is --model.base RUN, or a checkpoint of it, --model.base RUN/checkpoints/step-00000100; "
    "with the state of its optimiser, --train.base_optimizer true",
}
"""Keys that a recipe no longer has, and what to write instead."""


def translated(plain: Mapping[str, Any]) -> Tree:
    """The tree of a configuration that an earlier version wrote, as this one has it: [lowbit] and [quantise] are an edit, and
    [start] is left out, as such a run has all weights in its own checkpoints.

    A tree without those keys comes back as it is.
    """
    made = {key: value for key, value in plain.items() if key not in SECTIONS}
    lowbit, quantise = plain.get("lowbit"), plain.get("quantise")
    if isinstance(lowbit, Mapping) and lowbit.get("name", "none") != "none":
        edit = dict(lowbit)
        if isinstance(quantise, Mapping) and quantise.get("name", "always") != "always":
            edit["active"] = dict(quantise)
        made["edits"] = [*plain.get("edits", ()), edit]
    return made
