"""The folder of a packed model."""

from pathlib import Path

import torch

from shoestring.base.opened import Opened, Provenance
from shoestring.digests import digest_of
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.shrink.folder import MODEL, is_packed, load_packed


@method(
    "shrink.openers",
    kind="opener",
    name="packed",
    claim="matrices stay packed, and are multiplied as they are",
    cost="reads the file once",
)
class PackedOpener:
    """A packed model's folder."""

    def accepts(self, place: str) -> bool:
        return is_packed(Path(place))

    def open_packed(self, place: str) -> Opened:
        return self.open(place, None)

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        if dtype not in (None, torch.float32):
            raise UsageError(f"{place} is packed, and computes in float32: it has no other type")
        found = load_packed(Path(place))
        slow = found.model.native
        notes = (f"slow: every token goes module by module, as {slow}",) if isinstance(slow, str) else ()
        about = Provenance(str(Path(place).absolute()), "packed", digest_of([Path(place) / MODEL]), notes)
        return Opened(found.model, found.tokenizer, about)
