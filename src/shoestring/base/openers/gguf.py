"""A GGUF file."""

from pathlib import Path

import torch

from shoestring.base.gguf_file import PLAIN, GGUFFile, is_gguf, read_header
from shoestring.base.gguf_model import open_gguf_model
from shoestring.base.gguf_packed import open_gguf_packed
from shoestring.base.opened import Opened, Provenance
from shoestring.data.tokenizer import TextTokenizer
from shoestring.data.tokenizer_gguf import ends_of, tokenizer_of
from shoestring.digests import digest_of
from shoestring.errors import UsageError
from shoestring.kernels import kernel_in_use
from shoestring.lowbit.gguf_groups import BLOCK_BYTES
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
        file, tokenizer, notes = _begun(place)
        model = open_gguf_model(file, dtype or _stored(file)).eval()
        if quantised := _quantised(file):
            notes = (f"its matrices were rounded to {', '.join(quantised)} before: they are plain numbers here", *notes)
        return Opened(model, tokenizer, _about(file, place, notes))

    def open_packed(self, place: str) -> Opened:
        """Matrices in Q4_0, Q4_1 and Q8_0 stay as they are; others are float32."""
        file, tokenizer, notes = _begun(place)
        if not set(_quantised(file)) & set(BLOCK_BYTES):
            raise UsageError(
                f"{place} has no matrices in {', '.join(BLOCK_BYTES)}: there is nothing that could stay packed"
            )
        model, plain = open_gguf_packed(file)
        kept = [kind for kind in _quantised(file) if kind in BLOCK_BYTES]
        notes = (f"its matrices stay in {', '.join(kept)}: the kernel '{kernel_in_use()}' multiplies them", *notes)
        if plain:
            notes = (f"{plain} of its matrices are of other types, and plain numbers here", *notes)
        if isinstance(model.native, str):
            notes = (f"slow: every token goes module by module, as {model.native}", *notes)
        return Opened(model, tokenizer, _about(file, place, notes), model.unpacked)


def _begun(place: str) -> tuple[GGUFFile, TextTokenizer | None, tuple[str, ...]]:
    """(what the file says, its tokenizer, what there is to say of that)."""
    file = read_header(Path(place))
    tokenizer, notes = _tokenizer(file)  # first: what making it takes is given back before the model is there
    for key in [key for key, value in file.metadata.items() if isinstance(value, list)]:
        del file.metadata[key]  # the tokens and their merges, which the tokenizer has now
    return file, tokenizer, notes


def _types(file: GGUFFile) -> list[str]:
    return sorted({one.type for one in file.tensors.values()})


def _quantised(file: GGUFFile) -> list[str]:
    return [one for one in _types(file) if one not in PLAIN]


def _about(file: GGUFFile, place: str, notes: tuple[str, ...]) -> Provenance:
    template, name = file.metadata.get("tokenizer.chat_template"), file.metadata.get("general.name")
    values = {
        "architecture": str(file.metadata["general.architecture"]),
        "types": _types(file),
        "ends": ends_of(file.metadata),
        "name": name if isinstance(name, str) else None,
    }
    return Provenance(
        str(Path(place).absolute()),
        "gguf",
        digest_of([Path(place)]),
        notes,
        template if isinstance(template, str) else None,
        values,
    )


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
