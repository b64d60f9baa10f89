"""The `[old]` section of a recipe."""

from dataclasses import dataclass, replace

from shoestring.data.places import absolute_corpus
from shoestring.method import Count


@dataclass(frozen=True)
class OldConfig:
    """Text that the model is to be as good at as before. It is judged before the first step, and whenever the new text is.

    corpus: as data.corpus; '' judges none.
    text_field: as data.text_field.
    tokens: targets in each evaluation, at most.
    """

    corpus: str = ""
    text_field: str = "text"
    tokens: Count = 8192


def with_absolute_places(old: OldConfig) -> OldConfig:
    """The same text, named so that it is found from any folder."""
    return replace(old, corpus=absolute_corpus(old.corpus)) if old.corpus else old
