"""One function opens every model: a run, a packed model, experts, a transformers folder, a GGUF file, a model of the hub."""

import torch

from shoestring.base.opened import PACKED, Opened, Opener, OpensPackedWeights, Weights
from shoestring.errors import UsageError, printable
from shoestring.method import Card, methods

PACKAGES = ("base.openers", "quantise.openers", "shrink.openers", "train.openers", "experts.openers")
"""Where openers are, by the package that knows what they open."""


def openers() -> list[Card]:
    """The cards of all openers, in the order in which they are asked."""
    return [card for package in PACKAGES for card in methods(package, "opener")]


def open_model(place: str, dtype: Weights = None) -> Opened:
    """The model at `place`, ready to be used.

    place: the folder of a run, a packed model, experts or a transformers model; a GGUF file; 'hf:NAME' or 'hf:NAME@REVISION';
    'smollm2', the file of the installed package of that name.
    dtype: of the weights; None: as they are stored, in plain numbers; 'packed': what is packed stays so, and is multiplied so.
    Raises: UsageError where nothing opens it, ShoestringError where it is damaged.
    """
    cards = openers()
    for card in cards:
        opener: Opener = card.target()
        if opener.accepts(str(place)):
            if dtype != PACKED:
                return opener.open(str(place), dtype)
            if isinstance(opener, OpensPackedWeights):
                return opener.open_packed(str(place))
            raise UsageError(
                f"{printable(str(place))} is of the kind '{card.name}', which has no packed weights: name a type"
            )
    known = "; ".join(card.summary.rstrip(".").lower() for card in cards)
    raise UsageError(f"{printable(str(place))} is no model that can be opened. There are openers for: {known}")


_kept: dict[tuple[str, bool], Opened] = {}


def peek(place: str, packed: bool = False) -> Opened:
    """A look at the model at `place`, in float32, which is kept for whoever takes it: not to be changed.

    packed: with what is packed left so.
    """
    if (place, packed) not in _kept:
        _kept.clear()
        _kept[place, packed] = open_model(place, PACKED if packed else torch.float32)
    return _kept[place, packed]


def take(place: str, packed: bool = False) -> Opened:
    """As `peek`, for one's own use: that of the last `peek`, if it was here."""
    return _kept.pop((place, packed), None) or open_model(place, PACKED if packed else torch.float32)
