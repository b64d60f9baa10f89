"""Checkpoints: whole or absent, verified when read, nothing unpickled.

A checkpoint is a folder `step-00000042` with model.safetensors, optimizer.safetensors, rng.safetensors, state.json and
manifest.json, which lists the SHA-256 of the others. It is filled under another name and renamed into place.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoestring import atomic
from shoestring.errors import ShoestringError, UsageError, first_line
from shoestring.json_files import read_json

FORMAT = "shoestring-checkpoint"
VERSION = 1

MANIFEST = "manifest.json"
FILES = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json")
"""What a checkpoint holds beside its manifest: all of these, and nothing else."""

_FOLDER = re.compile(r"step-(\d{8,18})")


@dataclass(frozen=True)
class Snapshot:
    """Everything a run needs to go on exactly.

    model, optimizer: tensors by name.
    state: JSON values.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, oldest first. What has another name than a checkpoint's is passed over."""
    if not folder.is_dir():
        return []
    found = [(path, _FOLDER.fullmatch(path.name)) for path in folder.iterdir() if path.is_dir()]
    steps = [(path, int(match[1])) for path, match in found if match]
    return sorted(step for path, step in steps if path.name == _name(step))


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(folder: Path, step: int, snapshot: Snapshot, *, keep: int, spared: Collection[int] = ()) -> Path:
    """Write the checkpoint of `step` and drop all but the newest `keep` and those of the steps `spared`.

    Raises: ShoestringError when it cannot be written; the earlier checkpoints stand.
    """
    target = folder / _name(step)
    if target.exists():
        return target
    size = sum(t.numel() * t.element_size() for part in (snapshot.model, snapshot.optimizer) for t in part.values())
    try:
        with atomic.directory(target) as building:
            save_file(snapshot.model, building / "model.safetensors")
            save_file(snapshot.optimizer, building / "optimizer.safetensors")
            save_file({"cpu": torch.get_rng_state()}, building / "rng.safetensors")
            (building / "state.json").write_text(json.dumps(snapshot.state))
            digests = {name: _digest(building / name) for name in FILES}
            manifest = {"format": FORMAT, "version": VERSION, "step": step, "sha256": digests}
            (building / MANIFEST).write_text(json.dumps(manifest, indent=1))
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        last = list_checkpoints(folder)
        kept = f"the checkpoint of step {last[-1]} is kept" if last else "no earlier checkpoint exists"
        reason = getattr(error, "strerror", None) or str(error)
        need = f"{size / 1e6:.1f} MB are needed"
        raise ShoestringError(f"checkpoint of step {step} not written to {folder}: {reason} ({need}); {kept}") from None
    for old in list_checkpoints(folder)[:-keep]:
        if old not in spared:
            remove(folder, old)
    return target


def remove(folder: Path, step: int) -> None:
    """Drop the checkpoint of `step`. It is renamed first, so that one half removed is not taken for a checkpoint; what a kill
    leaves of it has a name that `atomic.sweep` knows."""
    doomed = folder / f".{_name(step)}.{os.getpid()}.tmp"
    shutil.rmtree(doomed, ignore_errors=True)
    (folder / _name(step)).rename(doomed)
    shutil.rmtree(doomed)


def load(folder: Path, step: int | None = None) -> tuple[int, Snapshot]:
    """(step, snapshot) of the checkpoint of `step`, or of the newest. Its files are verified first, and torch's random
    state is restored. Raises: UsageError when there is none, ShoestringError, naming the file, when it is damaged."""
    steps = list_checkpoints(folder)
    if not steps:
        raise UsageError(f"{folder} holds no checkpoint")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UsageError(f"{folder} has no checkpoint of step {chosen}: it has {', '.join(map(str, steps))}")
    try:
        return chosen, _read(folder / _name(chosen), chosen)
    except ShoestringError as error:
        others = [s for s in steps if s != chosen]
        if not others or isinstance(error, UsageError):
            raise
        raise ShoestringError(f"{error}; go on from another with --from-step {others[-1]}") from None


def _read(path: Path, step: int) -> Snapshot:
    """What a checkpoint's folder holds. Raises: ShoestringError, naming the file, where any of it is not what was written."""
    for name, expected in _read_manifest(path, step).items():
        try:
            found = _digest(path / name)
        except OSError as error:
            raise ShoestringError(f"{path / name} cannot be read: {error.strerror}") from None
        if found != expected:
            raise ShoestringError(f"{path / name} is damaged: its checksum is not the one recorded")
    state = read_json(path / "state.json", dict, "an object")
    tensors = {}
    for name in FILES[:-1]:
        try:
            tensors[name] = load_file(path / name)
        except (SafetensorError, ValueError, KeyError) as error:
            raise ShoestringError(f"{path / name} holds no tensors: {first_line(error)}") from None
    try:
        torch.set_rng_state(tensors["rng.safetensors"]["cpu"])
    except (KeyError, RuntimeError, TypeError):
        raise ShoestringError(f"{path / 'rng.safetensors'} holds no state of torch's random numbers") from None
    return Snapshot(tensors["model.safetensors"], tensors["optimizer.safetensors"], state)


def _read_manifest(path: Path, step: int) -> dict[str, str]:
    """The digests by file: of each file that a checkpoint has, and there are no others. Raises: ShoestringError."""
    file = path / MANIFEST
    manifest = read_json(file, dict, "an object")
    if manifest is None:
        raise ShoestringError(f"{file} is missing: without it {path.name} is no checkpoint")
    if manifest.get("format") != FORMAT:
        raise ShoestringError(f"{file} is damaged: it does not say '{FORMAT}'")
    if manifest.get("version") != VERSION:
        raise ShoestringError(f"{path} has version {manifest.get('version')!r}, this program reads version {VERSION}")
    if manifest.get("step") != step or isinstance(manifest["step"], bool):
        raise ShoestringError(f"{file} is of step {manifest.get('step')!r}, and its folder's name says {step}")
    digests = manifest.get("sha256")
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise ShoestringError(f"{file} is damaged: 'sha256' is not a checksum for each file")
    for name in sorted(digests.keys() ^ set(FILES)):
        what = "does not vouch for" if name in FILES else "names, and no checkpoint has,"
        raise ShoestringError(f"{file} is damaged: it {what} the file {name}")
    for name in sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *FILES}):
        if name.startswith("."):  # a file manager's, or a network file system's: nothing here reads it
            continue
        raise ShoestringError(f"{path / name} is no part of a checkpoint: move it elsewhere")
    return digests
