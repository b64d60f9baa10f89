"""The folder of a quantised model."""

from pathlib import Path
from typing import Any

import torch

from shoestring.base.opened import Opened, Provenance
from shoestring.base.quantised_model import QuantisedTransformer
from shoestring.contract.model import LanguageModule
from shoestring.data.tokenizer import TextTokenizer
from shoestring.digests import digest_of
from shoestring.errors import ShoestringError, UsageError, printable
from shoestring.kernels import kernel_in_use
from shoestring.method import method
from shoestring.quantise.folder import FILE, TEMPLATE, is_quantised, read_folder
from shoestring.quantise.opened_model import packed_model, plain_model, stays_packed


@method(
    "quantise.openers",
    kind="opener",
    name="quantised",
    claim="matrices stay packed where a kernel multiplies them so; in another type they are the numbers that they stand for",
    cost="reads the file once",
)
class QuantisedOpener:
    """A quantised model's folder, as `shoestring quantise` writes it."""

    def accepts(self, place: str) -> bool:
        return is_quantised(Path(place))

    def open_packed(self, place: str) -> Opened:
        return self.open(place, None)

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        """dtype: of plain numbers; None: packed, where there is a kernel."""
        folder = Path(place)
        file = read_folder(folder)
        model: LanguageModule
        notes: tuple[str, ...]
        if dtype is None:
            model, notes = packed_model(folder, file)
            count = sum(map(stays_packed, file.matrices.values())) if file.config else 0
            if count:
                notes = (f"{count} of its matrices stay packed: the kernel '{kernel_in_use()}' multiplies them", *notes)
        else:
            model, notes = plain_model(folder, file, dtype), ()
        tokenizer, template = text_of(folder)
        if tokenizer is not None and tokenizer.vocabulary > model.about.vocabulary:
            raise ShoestringError(
                f"{folder}: tokenizer and model do not belong together: {tokenizer.vocabulary} and {model.about.vocabulary} tokens"
            )
        ends = file.about.get("ends", [])
        values: dict[str, Any] = {
            "ends": [one for one in ends if isinstance(one, int)] if isinstance(ends, list) else []
        }
        notes = (*notes, *(printable(one) for one in lines_of(file.about.get("notes"))))
        about = Provenance(str(folder.absolute()), "quantised", digest_of([folder / FILE]), notes, template, values)
        return Opened(model, tokenizer, about, model.unpacked if isinstance(model, QuantisedTransformer) else None)


def lines_of(told: Any) -> list[str]:
    """The texts among what a file says; none where it says something else."""
    return [one for one in told if isinstance(one, str)] if isinstance(told, list) else []


def text_of(folder: Path) -> tuple[TextTokenizer | None, str | None]:
    """(the tokenizer in a folder, its chat template). Raises: ShoestringError where it is damaged."""
    if not (folder / "tokenizer.json").is_file():
        return None, None
    try:
        tokenizer = TextTokenizer.load(folder)
    except UsageError as error:
        raise ShoestringError(f"{folder}: {error}") from None
    path = folder / TEMPLATE
    return tokenizer, path.read_text(encoding="utf-8") if path.is_file() else None
