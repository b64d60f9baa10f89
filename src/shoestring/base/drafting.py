"""Drafters by name, with the draft model or the file that they need."""

from pathlib import Path
from typing import Any

import torch

from shoestring.base.open_model import open_model
from shoestring.base.opened import Opened
from shoestring.contract.model import LanguageModel
from shoestring.decode.drafter import Drafter
from shoestring.decode.supplied import WHAT, needs, supplied
from shoestring.errors import UsageError
from shoestring.method import find


def check_drafter(name: str | None, place: str | None) -> None:
    """Raises: UsageError where a drafter is unknown, or has not what it needs, before anything is loaded."""
    wanted = needs(find("decode", name, "drafter").target) if name else ()
    takes = sorted({"draft", "place"} & set(wanted))
    if takes and place is None:
        raise UsageError(f"the drafter '{name}' needs {WHAT[takes[0]]}: give --draft PLACE")
    if place is not None and not takes:
        raise UsageError("--draft is for a drafter that needs a place: give --drafter draft_model, say")


def open_drafter(
    name: str | None, place: str | None, opened: Opened, dtype: torch.dtype | None = None
) -> Drafter | None:
    """The drafter of this name for an opened model; None for None.

    place: of the draft model, or of the file that was made for the drafter. dtype: of the draft model's weights.
    Raises: UsageError where the draft model has other tokens.
    """
    if name is None:
        return None

    supplies = {
        "target": lambda: opened.model,
        "draft": lambda: open_draft(str(place), opened, dtype),
        "place": lambda: Path(str(place)),
    }
    made: Drafter = supplied("drafter", name, supplies)
    return made


def open_draft(place: str, opened: Opened, dtype: torch.dtype | None = None) -> LanguageModel:
    """The draft model of an opened model. Raises: UsageError where it has other tokens."""
    other = open_model(place, dtype)
    if opened.tokenizer and other.tokenizer and opened.tokenizer.token_bytes != other.tokenizer.token_bytes:
        raise UsageError(f"{place} has other tokens than {opened.about.place}: a draft model needs the same")
    return other.model


def check_made(kind: str, name: str | None, place: str | None, flag: str) -> None:
    """Raises: UsageError where a method is unknown, or has not the file that it needs, before anything is loaded.

    kind: of the method, 'mixture' or 'depth'. flag: that gives the file.
    """
    wanted = needs(find("decode", name, kind).target) if name else ()
    if "place" in wanted and place is None:
        raise UsageError(f"the {kind} '{name}' needs {WHAT['place']}: give {flag} FILE (`shoestring prepare` makes it)")
    if place is not None and "place" not in wanted:
        raise UsageError(f"{flag} is for a {kind} that needs a file: give --{kind} NAME")


def open_made(kind: str, name: str | None, place: str | None, opened: Opened) -> Any:
    """The method of this kind and name for an opened model; None for None. place: of the file that was made for it."""
    if name is None:
        return None
    return supplied(kind, name, {"target": lambda: opened.model, "place": lambda: Path(str(place))})
