"""Adapters in the file format of peft for any model here: where its matrices lie, the name of its base, and a folder read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoestring.base.opened import Opened
from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.bridge.family import families, family_holding, family_of
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.tune.adapter_edit import AdapterEdit, matrices
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter
from shoestring.tune.peft_file import adapter_of, read_adapter, write_adapter

STOCK = "stock."
"""What the names of a wrapped model begin with."""


def parts_in(model: LanguageModule, model_type: str | None = None) -> list[MatrixPart]:
    """The matrices of transformers in a model's layers, adapted or not.

    model_type: of a native model, the family whose names are wanted. None: the first that holds the model.
    Raises: UsageError for a model that no class of transformers holds.
    """
    ours = matrices(model)
    if isinstance(model, Wrapped):
        return [MatrixPart(name.removeprefix(STOCK), name) for name in ours]
    if not isinstance(model, Transformer):
        raise UsageError(f"a model of the kind {type(model).__name__} has no names in transformers")
    family = family_holding(model.config)[0] if model_type is None else family_of(model_type)
    known, found = set(ours), list[MatrixPart]()
    for theirs, place in family.places(model.config).items():
        name = place.name.removesuffix(".weight")
        if name in known and theirs.endswith(".weight"):
            found.append(MatrixPart(theirs.removesuffix(".weight"), name, place.start, place.rows, place.order))
    return found


def save_adapter(
    folder: Path,
    model: LanguageModule,
    edit: AdapterEdit,
    values: Mapping[str, Any],
    base: str,
    model_type: str | None = None,
) -> None:
    """Write the adapters of a model as peft has them.

    values: of the decision that made them. base: the name of what they are adapters of, as a place or as the hub has it.
    Raises: UsageError where peft has none of this kind, or `folder` holds something.
    """
    made = edit.exported(model, values, parts_in(model, model_type))
    write_adapter(folder, PeftAdapter({**made.settings, "base_model_name_or_path": base}, made.tensors))


def family_named(base: Opened) -> str | None:
    """The `model_type` of a base, as its opener knows it."""
    values = base.about.values
    known = {family.model_type for family in families()}
    told = str(values.get("model_type", values.get("architecture", "")))
    return told if told in known else None


def read_on(base: Opened, model: LanguageModule, folder: Path) -> tuple[AdapterEdit, Decision]:
    """The adapter of a folder, as peft writes it, for a base, and how it is placed.

    model: that of the base, which stays as it is. Raises: UsageError where the folder does not fit it.
    """
    return adapter_of(read_adapter(folder), model, parts_in(model, family_named(base)))


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Adapters by name, of NAME=FOLDER each; of a folder alone, its last part is the name. Raises: UsageError."""
    found = dict[str, Path]()
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or "/" in name:
            name, folder = Path(word).absolute().name, word
        if not name or not folder:
            raise UsageError(f"--adapter {word}: give NAME=FOLDER")
        if name in found:
            raise UsageError(f"two adapters would be called '{name}': give each a name, as NAME=FOLDER")
        found[name] = Path(folder)
    return found
