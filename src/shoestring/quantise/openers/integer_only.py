"""The folder of an integer-only model."""

from pathlib import Path

import torch

from shoestring.base.opened import Opened, Provenance
from shoestring.digests import digest_of
from shoestring.errors import ShoestringError, UsageError, printable
from shoestring.method import method
from shoestring.quantise.integer_only.kept import FILE, is_integer_only, read_folder
from shoestring.quantise.openers.quantised import lines_of, text_of


@method(
    "quantise.openers",
    kind="opener",
    name="integer_only",
    paper="EmbBERT-Q: Breaking Memory Barriers in Embedded NLP, arXiv:2502.10001; "
    "I-BERT: Integer-only BERT Quantization, arXiv:2101.01321",
    claim="a model of 781 kB, weights and activations in 8 bits, outperforms baselines that are scaled down to 2 MB; with integers "
    "alone RoBERTa is about as accurate as in full precision",
    cost="reads the file once; 4 bytes for each row of a matrix and each feature of a norm; 514 bytes for each SiLU or GELU",
)
class IntegerOnlyOpener:
    """An integer-only model's folder, as `shoestring quantise --to integers` writes it."""

    def accepts(self, place: str) -> bool:
        return is_integer_only(Path(place))

    def open_packed(self, place: str) -> Opened:
        return self.open(place, None)

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        """dtype: None, as there is no other. Raises: UsageError for one."""
        folder = Path(place)
        if dtype is not None:
            raise UsageError(
                f"{printable(place)} computes with integers alone: it cannot be opened in {str(dtype)[6:]}"
            )
        file = read_folder(folder)
        tokenizer, template = text_of(folder)
        if tokenizer is not None and tokenizer.vocabulary > file.model.about.vocabulary:
            raise ShoestringError(
                f"{folder}: tokenizer and model do not belong together: {tokenizer.vocabulary} and "
                f"{file.model.about.vocabulary} tokens"
            )
        ends = file.about.get("ends", [])
        values = {"ends": [one for one in ends if isinstance(one, int)] if isinstance(ends, list) else []}
        notes = tuple(printable(one) for one in lines_of(file.about.get("notes")))
        about = Provenance(str(folder.absolute()), "integer_only", digest_of([folder / FILE]), notes, template, values)
        return Opened(file.model, tokenizer, about)
