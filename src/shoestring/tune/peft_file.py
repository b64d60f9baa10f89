"""The file format of peft: adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shoestring import atomic
from shoestring.contract.edit import Decision
from shoestring.contract.model import LanguageModule
from shoestring.errors import ShoestringError, UsageError, did_you_mean, first_line
from shoestring.json_files import read_json
from shoestring.method import methods
from shoestring.tune.adapter_edit import AdapterEdit
from shoestring.tune.peft_adapter import SETTINGS, TENSORS, MatrixPart, PeftAdapter

PREFIX = "base_model.model."
"""What the names of all tensors in a file begin with."""

MOST = 4 << 30
"""Bytes that an adapter's file may have: a larger one is no adapter."""


def write_adapter(folder: Path, adapter: PeftAdapter) -> None:
    """Write the two files. Raises: UsageError where `folder` holds something."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists: name another")
    with atomic.directory(folder) as half:
        flat = {
            f"{PREFIX}{module}.{name}": tensor.detach().cpu().float().contiguous().clone()
            for module, own in adapter.tensors.items()
            for name, tensor in own.items()
        }
        (half / TENSORS).write_bytes(save(flat, {"format": "pt"}))
        (half / SETTINGS).write_text(json.dumps(dict(adapter.settings), indent=2, sort_keys=True) + "\n")


def read_adapter(folder: Path) -> PeftAdapter:
    """The adapter in a folder. Nothing is unpickled. Raises: UsageError, ShoestringError where it is damaged."""
    settings = read_json(folder / SETTINGS, dict, "an object")
    if settings is None:
        raise UsageError(f"{folder} has no {SETTINGS}: it is no adapter")
    path = folder / TENSORS
    if not path.is_file():
        others = sorted(one.name for one in folder.glob("adapter_model.*"))
        more = f": {others[0]} can run code as it is opened, convert it to safetensors" if others else ""
        raise UsageError(f"{folder} has no {TENSORS}{more}")
    if path.stat().st_size > MOST:
        raise UsageError(f"{path} has more than {MOST >> 30} GiB, and an adapter has not")
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for full in file.keys():  # noqa: SIM118, no dict
                module, name = _split(full, path)
                found.setdefault(module, {})[name] = file.get_tensor(full).float()
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ShoestringError(f"{path} cannot be read: {first_line(error)}") from None
    if not found:
        raise UsageError(f"{path} holds no tensor")
    return PeftAdapter(settings, found)


def _split(full: str, path: Path) -> tuple[str, str]:
    """(module, own name) of a tensor."""
    parts = full.removeprefix(PREFIX).split(".")
    for place, part in enumerate(parts):
        if part.startswith(("lora_", "road_")):
            return ".".join(parts[:place]), ".".join(parts[place:])
    raise UsageError(f"{path}: the tensor '{full[:80]}' is of no kind of adapter that is known here")


def adapter_of(
    adapter: PeftAdapter, model: LanguageModule, parts: Sequence[MatrixPart]
) -> tuple[AdapterEdit, Decision]:
    """The edit that an adapter of peft is, and the decision that places it.

    model: the base; it stays as it is. parts: the matrices of transformers in it.
    Raises: UsageError for a kind that no method here reads, or matrices that the model has not.
    """
    kind = str(adapter.settings.get("peft_type"))
    known = {part.theirs for part in parts}
    for module in adapter.tensors:
        if module not in known:
            raise UsageError(f"it adapts '{module[:80]}', which this model has not: {did_you_mean(module, known)}")
    targets: list[Any] = [card.target for card in methods("tune", "edit")]
    kinds: list[type[AdapterEdit]] = [
        each for each in targets if isinstance(each, type) and issubclass(each, AdapterEdit)
    ]
    for target in kinds:
        if kind in target.peft_types and target.reads(adapter.settings):
            try:
                return target.imported(adapter, model, parts)
            except ShoestringError:
                raise
            except ValueError as error:  # of an option that is out of its bounds
                raise UsageError(f"{SETTINGS}: {first_line(error)}") from None
    have = sorted({name for target in kinds for name in target.peft_types})
    raise UsageError(f"its adapters are of the kind {kind[:40]}: those that are read here are {', '.join(have)}")
