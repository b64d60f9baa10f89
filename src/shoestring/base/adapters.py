"""Adapters in the file format of peft for any model here: where its matrices lie, and the name of its base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoestring.contract.model import LanguageModule
from shoestring.errors import UsageError
from shoestring.model.bridge.family import family_holding, family_of
from shoestring.model.transformer import Transformer
from shoestring.model.wrapped import Wrapped
from shoestring.tune.adapter_edit import AdapterEdit, matrices
from shoestring.tune.peft_adapter import MatrixPart, PeftAdapter
from shoestring.tune.peft_file import write_adapter

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
