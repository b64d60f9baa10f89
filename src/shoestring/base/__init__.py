"""Models that exist already, from wherever they lie: `open_model(place)` gives model, tokenizer and what is known of them."""

from shoestring.base.open_model import open_model, peek, take
from shoestring.base.opened import Opened, Provenance

__all__ = ["Opened", "Provenance", "open_model", "peek", "take"]
