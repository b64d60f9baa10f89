"""The folder that curating writes: a corpus like any other, with a card that says how it was made."""

from pathlib import Path
from typing import Any

from shoestring.json_files import read_json

CARD = "data-card.json"
DOCUMENTS = "documents"
FORMAT = "shoestring-data"


def read_card(folder: Path) -> dict[str, Any] | None:
    """The data card of a folder; None where it has none."""
    found: dict[str, Any] | None = read_json(folder / CARD, dict, "an object") if folder.is_dir() else None
    return found if found is not None and found.get("format") == FORMAT else None


def documents_of(folder: Path) -> Path:
    """Where the text of a folder lies: in its `documents/`, if curating wrote it, and else in the folder itself."""
    return folder / DOCUMENTS if read_card(folder) is not None else folder
