"""Fingerprints of what all workers of a run must have alike."""

import hashlib
import json

from shoestring.config import Tree
from shoestring.data.places import PLACES


def digest(values: object) -> str:
    """32 hex digits of plain values, whatever the order of keys: BLAKE2b of them as JSON."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def without_places(values: Tree) -> Tree:
    """The plain values of a configuration, save for where its data lies."""
    return {**values, "data": {key: value for key, value in values["data"].items() if key not in PLACES}}
