"""Models that exist already, from wherever they lie: `open_model(place)` gives model, tokenizer and what is known of them."""

from shoestring.base.open_model import open_model, peek, take
from shoestring.base.opened import About, Opened

__all__ = ["About", "Opened", "open_model", "peek", "take"]
