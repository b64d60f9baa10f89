"""A GGUF file."""

from pathlib import Path

import torch

from shoestring.base.gguf_file import PLAIN, GGUFFile, is_gguf, read_header
from shoestring.base.gguf_model import open_gguf_model
from shoestring.base.opened import About, Opened
from shoestring.data.tokenizer import TextTokenizer
from shoestring.data.tokenizer_gguf import ends_of, tokenizer_of
from shoestring.digests import digest_of
from shoestring.errors import UsageError
from shoestring.method import method


@method(
    "base.openers",
    kind="opener",
    name="gguf",
    claim="the numbers that the file's blocks stand for, in a native model of plain matrices",
    cost="reads the file twice; the memory of the model, and of its largest tensor once more",
)
class GGUFOpener:
    """A GGUF file.

    Its model becomes a native one; tokenizer and chat template are from its metadata. Architectures: those of llama.cpp that
    have a bridge.
    """

    def accepts(self, place: str) -> bool:
        return Path(place).is_file() and is_gguf(Path(place))

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        file = read_header(Path(place))
        tokenizer, notes = _tokenizer(file)  # first: what making it takes is given back before the model is there
        for key in [key for key, value in file.metadata.items() if isinstance(value, list)]:
            del file.metadata[key]  # the tokens and their merges, which the tokenizer has now
        model = open_gguf_model(file, dtype or _stored(file)).eval()
        template, name = file.metadata.get("tokenizer.chat_template"), file.metadata.get("general.name")
        types = sorted({one.type for one in file.tensors.values()})
        values = {
            "architecture": str(file.metadata["general.architecture"]),
            "types": types,
            "ends": ends_of(file.metadata),
            "name": name if isinstance(name, str) else None,
        }
        if quantised := [one for one in types if one not in PLAIN]:
            notes = (f"its matrices were rounded to {', '.join(quantised)} before: they are plain numbers here", *notes)
        about = About(
            str(Path(place).absolute()),
            "gguf",
            digest_of([Path(place)]),
            notes,
            template if isinstance(template, str) else None,
            values,
        )
        return Opened(model, tokenizer, about)


def _stored(file: GGUFFile) -> torch.dtype:
    """The type of the matrices in the file, where all have the same and torch has it; else float32."""
    types = {one.type for one in file.tensors.values() if len(one.shape) > 1}
    return PLAIN.get(types.pop(), torch.float32) if len(types) == 1 else torch.float32


def _tokenizer(file: GGUFFile) -> tuple[TextTokenizer | None, tuple[str, ...]]:
    """(the tokenizer of a file, None where it cannot be used; what there is to say of it)."""
    if "tokenizer.ggml.model" not in file.metadata:
        return None, ("it has no tokenizer",)
    try:
        tokenizer, notes = tokenizer_of(file.metadata)
        embedding = file.tensors.get("token_embd.weight")
        if embedding is not None and tokenizer.vocabulary > embedding.shape[0]:
            raise UsageError(f"it has {tokenizer.vocabulary} ids, and the model {embedding.shape[0]}")
    except UsageError as error:
        return None, (f"its tokenizer cannot be used: {error}",)
    return tokenizer, (*notes, *tokenizer.caveats)
