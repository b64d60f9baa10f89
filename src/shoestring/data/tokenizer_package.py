"""Tokenizers made by the `tokenizers` package of what may be damaged: what it fails on is refused in one line.

On some damage the package does not raise an `Exception`: it panics, which is none, or asks for more memory than there is, which
ends the process. The first is caught here, the second is checked for.
"""

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tokenizers

from shoestring.errors import UsageError, first_line

Made = TypeVar("Made")


def made_by_package(make: Callable[[], Made], problem: str) -> Made:
    """What `make` gives. Raises: UsageError, beginning with `problem`, where it raises or panics."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package raises Exception itself; a panic is a BaseException
        raise UsageError(f"{problem}: {first_line(error)}") from None


def rules_of_json(described: Any, problem: str) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json's content. Raises: UsageError, beginning with `problem`, where there is none."""
    if isinstance(described, dict):
        for text in _character_maps(described.get("normalizer")):
            try:
                check_character_map(base64.b64decode(text))
            except (ValueError, UsageError) as error:
                raise UsageError(f"{problem}: {first_line(error)}") from None
    return made_by_package(lambda: tokenizers.Tokenizer.from_str(json.dumps(described)), problem)


def check_character_map(content: bytes) -> None:
    """Check the size that SentencePiece's compiled normalisation begins with: the package sets memory aside for it unseen.

    Four bytes, little-endian, are the bytes of a trie; the trie and the texts that characters become come after them.
    Raises: UsageError where the trie would be longer than all there is.
    """
    if len(content) < 4 or struct.unpack_from("<I", content)[0] > len(content) - 4:
        raise UsageError(f"its table of normalisation, of {len(content)} bytes, is damaged or cut short")


def _character_maps(normaliser: Any) -> Iterator[str]:
    """The tables of a tokenizer.json's normaliser, in base64."""
    waiting = [normaliser]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict):
            continue
        found, inner = one.get("precompiled_charsmap"), one.get("normalizers")
        if isinstance(found, str) and found:
            yield found
        waiting += inner if isinstance(inner, list) else []
