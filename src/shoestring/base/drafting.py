"""Drafters by name, with the draft model or the file that they need."""

from pathlib import Path

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

    def draft() -> LanguageModel:
        other = open_model(str(place), dtype)
        if opened.tokenizer and other.tokenizer and opened.tokenizer.token_bytes != other.tokenizer.token_bytes:
            raise UsageError(f"{place} has other tokens than {opened.about.place}: a draft model needs the same")
        return other.model

    supplies = {"target": lambda: opened.model, "draft": draft, "place": lambda: Path(str(place))}
    made: Drafter = supplied("drafter", name, supplies)
    return made
