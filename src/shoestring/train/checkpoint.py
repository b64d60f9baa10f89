"""Checkpoints: whole or absent, verified when read, nothing unpickled.

A checkpoint is a folder `step-00000042` with model.safetensors, optimizer.safetensors, rng.safetensors, state.json and
manifest.json, which lists the SHA-256 of the others. It is filled under another name and renamed into place.

One that several processes have written (`sharded_checkpoint`) has a model-00000.safetensors and an optimizer-00000.safetensors
of each process, and its manifest says which of them has which part of each tensor. Either is read tensor by tensor, by any number
of processes.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoestring import atomic
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_json
from shoestring.model.safetensors_writer import write_all
from shoestring.parallel.stored_tensors import StoredTensors, pieces_of

FORMAT = "shoestring-checkpoint"
VERSION, SHARDED = 1, 2
"""Of a checkpoint that one process has written, and of one that several have."""

MANIFEST = "manifest.json"
RANDOM, STATE = "rng.safetensors", "state.json"
TENSORS = ("model", "optimizer")
FILES = ("model.safetensors", "optimizer.safetensors", RANDOM, STATE)
"""What a checkpoint of one process holds beside its manifest: all of these, and nothing else."""

_SHARD = re.compile(rf"({'|'.join(TENSORS)})-\d{{5,9}}\.safetensors")

_FOLDER = re.compile(r"step-(\d{8,18})")


@dataclass(frozen=True)
class Snapshot:
    """Everything a run needs to go on exactly.

    model, optimizer: tensors by name; of one that was loaded, each is read when it is asked for.
    state: JSON values.
    """

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
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
    with telling(folder, step, size), atomic.directory(target) as building:
        digests = {
            "model.safetensors": write_all(building / "model.safetensors", snapshot.model),
            "optimizer.safetensors": write_all(building / "optimizer.safetensors", snapshot.optimizer),
        }
        finish(building, step, snapshot.state, digests, {"version": VERSION})
    drop_old(folder, keep, spared)
    return target


@contextmanager
def telling(folder: Path, step: int, size: int) -> Iterator[None]:
    """Around the writing of a checkpoint: what goes wrong there is told in a line. size: bytes that it takes.

    Raises: ShoestringError.
    """
    try:
        yield
    except OSError as error:
        raise not_written(folder, step, error.strerror or str(error), size) from None


def not_written(folder: Path, step: int, reason: str, size: int) -> ShoestringError:
    """That a checkpoint was not written, and why; the earlier ones stand."""
    last = list_checkpoints(folder)
    kept = f"the checkpoint of step {last[-1]} is kept" if last else "no earlier checkpoint exists"
    need = f"{size / 1e6:.1f} MB are needed"
    return ShoestringError(f"checkpoint of step {step} not written to {folder}: {reason} ({need}); {kept}")


def finish(
    building: Path, step: int, state: Mapping[str, Any], digests: Mapping[str, str], about: Mapping[str, Any]
) -> None:
    """Write what is not divided among processes, and last the manifest.

    digests: of the files that are there. about: what the manifest says beside, its version among it.
    """
    random = write_all(building / RANDOM, {"cpu": torch.get_rng_state()})
    (building / STATE).write_text(json.dumps(state))
    whole = {**digests, RANDOM: random, STATE: _digest(building / STATE)}
    manifest = {"format": FORMAT, **about, "step": step, "sha256": whole}
    (building / MANIFEST).write_text(json.dumps(manifest, indent=1 if len(about) == 1 else None))


def drop_old(folder: Path, keep: int, spared: Collection[int]) -> None:
    """Drop all checkpoints but the newest `keep` and those of the steps `spared`."""
    for old in list_checkpoints(folder)[:-keep]:
        if old not in spared:
            remove(folder, old)


def remove(folder: Path, step: int) -> None:
    """Drop the checkpoint of `step`. It is renamed first, so that one half removed is not taken for a checkpoint; what a kill
    leaves of it has a name that `atomic.sweep` knows."""
    doomed = folder / f".{_name(step)}.{os.getpid()}.tmp"
    shutil.rmtree(doomed, ignore_errors=True)
    (folder / _name(step)).rename(doomed)
    shutil.rmtree(doomed)


def load(
    folder: Path, step: int | None = None, verified: Callable[[int], bool] = lambda number: True
) -> tuple[int, Snapshot]:
    """(step, snapshot) of the checkpoint of `step`, or of the newest. Its files are verified first, and torch's random
    state is restored.

    verified: whether this process verifies the file of a number, where several do so together.
    Raises: UsageError when there is none, ShoestringError, naming the file, when it is damaged.
    """
    steps = list_checkpoints(folder)
    if not steps:
        raise UsageError(f"{folder} holds no checkpoint")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UsageError(f"{folder} has no checkpoint of step {chosen}: it has {', '.join(map(str, steps))}")
    try:
        return chosen, _read(folder / _name(chosen), chosen, verified)
    except ShoestringError as error:
        others = [s for s in steps if s != chosen]
        if not others or isinstance(error, UsageError):
            raise
        raise ShoestringError(f"{error}; go on from another with --from-step {others[-1]}") from None


def weight_files(folder: Path, step: int) -> list[Path]:
    """The files that have the weights of the checkpoint of `step`."""
    return sorted((folder / _name(step)).glob("model*.safetensors"))


def _read(path: Path, step: int, verified: Callable[[int], bool]) -> Snapshot:
    """What a checkpoint's folder holds. Raises: ShoestringError, naming the file, where any of it is not what was written."""
    manifest = _read_manifest(path, step)
    for number, (name, expected) in enumerate(sorted(manifest["sha256"].items())):
        if not verified(number):
            continue
        try:
            found = _digest(path / name)
        except OSError as error:
            raise ShoestringError(f"{path / name} cannot be read: {error.strerror}") from None
        if found != expected:
            raise ShoestringError(f"{path / name} is damaged: its checksum is not the one recorded")
    state = read_json(path / STATE, dict, "an object")
    if manifest["version"] == VERSION:
        model, optimizer = (StoredTensors.of_file(path / f"{name}.safetensors") for name in TENSORS)
    else:
        files = frozenset(manifest["sha256"])
        stored = (pieces_of(manifest.get(name), path / MANIFEST, files) for name in TENSORS)
        model, optimizer = map(StoredTensors, stored)
    random = StoredTensors.of_file(path / RANDOM)
    try:
        torch.set_rng_state(random["cpu"])
    except (KeyError, RuntimeError, TypeError):
        raise ShoestringError(f"{path / RANDOM} holds no state of torch's random numbers") from None
    return Snapshot(model, optimizer, state)


def _read_manifest(path: Path, step: int) -> dict[str, Any]:
    """The manifest, with the digest of each file that a checkpoint has, and there are no others. Raises: ShoestringError."""
    file = path / MANIFEST
    manifest: dict[str, Any] | None = read_json(file, dict, "an object")
    if manifest is None:
        raise ShoestringError(f"{file} is missing: without it {path.name} is no checkpoint")
    if manifest.get("format") != FORMAT:
        raise ShoestringError(f"{file} is damaged: it does not say '{FORMAT}'")
    version = manifest.get("version")
    if version not in (VERSION, SHARDED) or isinstance(version, bool):
        raise ShoestringError(f"{path} has version {version!r}, this program reads versions {VERSION} and {SHARDED}")
    if manifest.get("step") != step or isinstance(manifest["step"], bool):
        raise ShoestringError(f"{file} is of step {manifest.get('step')!r}, and its folder's name says {step}")
    digests = manifest.get("sha256")
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise ShoestringError(f"{file} is damaged: 'sha256' is not a checksum for each file")
    expected = {*FILES}
    if version == SHARDED:
        expected = {RANDOM, STATE, *(name for name in digests if _SHARD.fullmatch(name))}
    for name in sorted(digests.keys() ^ expected):
        what = "does not vouch for" if name in expected else "names, and no checkpoint has,"
        raise ShoestringError(f"{file} is damaged: it {what} the file {name}")
    for name in sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *expected}):
        if name.startswith("."):  # a file manager's, or a network file system's: nothing here reads it
            continue
        raise ShoestringError(f"{path / name} is no part of a checkpoint: move it elsewhere")
    return manifest
