"""The folder of an adapter, as peft writes it."""

import dataclasses
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shoestring.base.adapters import family_named, parts_in
from shoestring.base.opened import PACKED, Opened, Weights
from shoestring.base.transformers_config import CONFIG
from shoestring.contract.model import LanguageModule
from shoestring.digests import digest_of
from shoestring.errors import UsageError
from shoestring.method import method
from shoestring.tune.adapter_edit import AdapterEdit
from shoestring.tune.peft_adapter import SETTINGS, TENSORS
from shoestring.tune.peft_file import adapter_of, read_adapter

DEEPEST = 8
"""Adapters upon adapters, at most."""


@method(
    "base.openers",
    kind="opener",
    name="adapter",
    claim="the base that the folder names with its adapters beside, as peft computes them; nothing is unpickled",
    cost="opens the base; an adapter's own size beside",
)
class AdapterOpener:
    """An adapter's folder, as peft writes it.

    Its base is the place that adapter_config.json names, from here or from beside the folder, or a model of the hub. BASE+FOLDER
    puts it on another: smollm2+adapters/poet.
    """

    def accepts(self, place: str) -> bool:
        folder = Path(_split(place)[1])
        return (folder / SETTINGS).is_file() and not (folder / CONFIG).exists()

    def open_packed(self, place: str) -> Opened:
        """Beside the packed matrices of the base."""
        return self._open(place, PACKED)

    def open(self, place: str, dtype: torch.dtype | None) -> Opened:
        return self._open(place, dtype)

    def _open(self, place: str, dtype: Weights) -> Opened:
        from shoestring.base.open_model import open_model

        given, name = _split(place)
        folder = Path(name)
        found = read_adapter(folder)
        below = given or _base(folder, found.settings.get("base_model_name_or_path"))
        if place.count("+") > DEEPEST or Path(below).absolute() == folder.absolute():
            raise UsageError(f"{folder} names itself as its base, or is the last of more than {DEEPEST}")
        base = open_model(below, dtype)
        if not isinstance(base.model, LanguageModule):
            raise UsageError(f"{below} is {base.about.kind}, which takes no adapters")
        try:
            edit, decision = adapter_of(found, base.model, parts_in(base.model, family_named(base)))
            model = edit.apply(base.model, decision)
        except UsageError as error:
            raise UsageError(f"{folder}: {error}") from None
        digest = hashlib.sha256(f"{base.about.digest} {digest_of([folder / SETTINGS, folder / TENSORS])}".encode())
        edits = [*base.about.values.get("edits", ())]
        about = dataclasses.replace(
            base.about,
            place=place if given else str(folder.absolute()),
            kind="adapter",
            digest=digest.hexdigest(),
            values={**base.about.values, "base": below, "base_edits": edits, "edits": [edit.name]},
        )
        return Opened(model.eval(), base.tokenizer, about, partial(_folded, edit, model, base))


def _split(place: str) -> tuple[str, str]:
    """(base, folder) of BASE+FOLDER; ('', place) of a folder by itself."""
    base, plus, folder = place.rpartition("+")
    return (base, folder) if plus and not Path(place).exists() else ("", place)


def _base(folder: Path, named: Any) -> str:
    """The place that an adapter's base is at. Raises: UsageError where none is named."""
    if not isinstance(named, str) or not named:
        raise UsageError(f"{folder} names no base: open it as BASE+{folder}")
    beside = folder / named
    if not Path(named).exists() and beside.exists():
        return str(beside)
    # whoever tunes a model of the hub names it as the hub does
    hub = named.count("/") == 1 and not named.startswith((".", "/", "~", "hf:")) and not Path(named).exists()
    return f"hf:{named}" if hub else named


def _folded(edit: AdapterEdit, model: LanguageModule, base: Opened) -> LanguageModule:
    made = edit.fold(model)
    if base.fold is None:
        return made
    below = base.fold()
    assert isinstance(below, LanguageModule)
    return below
