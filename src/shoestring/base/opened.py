"""What opening a place gives, and what opens it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from shoestring.contract.model import LanguageModel
from shoestring.data.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Provenance:
    """What is known of an opened model.

    place: what was opened, as it was named, and absolute where it is a path.
    kind: the opener's name: 'run', 'packed', 'experts', 'transformers', 'gguf', 'hub'.
    digest: of the weights and the configuration; equal digests are equal models, wherever they lie.
    notes: a line each for what was left out, or is slow here.
    chat_template: in Jinja, as the model's makers wrote it; None where there is none.
    values: what else the opener has to say, as JSON values. Of a run: 'step'; 'data', its [data] section; 'edits', and
    'base_edits' of what it is based on. 'ends': ids that end a text, beside the tokenizer's end token.
    """

    place: str
    kind: str
    digest: str
    notes: tuple[str, ...] = ()
    chat_template: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A model that can be used at once.

    model: in evaluation mode, on the CPU; every engine takes it.
    tokenizer: its own; None where the place has none.
    about: where it is from.
    fold: gives the model of plain layers that computes the same, for export; `model` is changed and not to be used after that.
    None: it is of plain layers, or there is no such model.
    """

    model: LanguageModel
    tokenizer: TextTokenizer | None
    about: Provenance
    fold: Callable[[], LanguageModel] | None = None


PACKED: Literal["packed"] = "packed"
"""In the place of a type of weights: those that are packed stay so, and are multiplied as they are."""

Weights = torch.dtype | Literal["packed"] | None
"""What is asked of a model's weights: a type, PACKED, or as they are stored, in plain numbers."""


@runtime_checkable
class OpensPackedWeights(Protocol):
    """An `Opener` of a kind whose places may hold packed weights."""

    def open_packed(self, place: str) -> "Opened":
        """As `Opener.open`, with what is packed left so."""
        ...


class Opener(Protocol):
    """Opens one kind of place: a method of the kind 'opener' in a package named `openers`."""

    def accepts(self, place: str) -> bool:
        """Whether `place` is of this kind, by a look at names and first bytes alone."""
        ...

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        """The model at `place`. dtype: of its weights; None: as they are stored.

        Nothing from the place is unpickled, and no code from it runs.
        Raises: UsageError where it cannot be opened, ShoestringError where it is damaged.
        """
        ...
