"""The folder of a pipeline's checkpoints: one file a stage, and a manifest that makes them a checkpoint.

`step-00000042/stage-0.safetensors ...` are written by the stages' own processes, each whole or not at all; then
`manifest.json`, with their SHA-256. A folder without a manifest is no checkpoint.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from shoestring import atomic
from shoestring.errors import ShoestringError
from shoestring.json_files import read_json

MANIFEST = "manifest.json"


def stage_file(folder: Path, step: int, stage: int) -> Path:
    return folder / f"step-{step:08d}" / f"stage-{stage}.safetensors"


def complete(folder: Path) -> list[int]:
    """The steps whose checkpoints are complete, oldest first. What has another name than a checkpoint's is passed over."""
    found = [(path.parent, path.parent.name.removeprefix("step-")) for path in folder.glob(f"step-*/{MANIFEST}")]
    steps = [(path, int(digits)) for path, digits in found if digits.isdecimal()]
    return sorted(step for path, step in steps if path == stage_file(folder, step, 0).parent)


def seal(folder: Path, step: int, digests: Sequence[str], keep: int) -> None:
    """The files of all stages are there: make them a checkpoint, and drop all but the newest `keep`."""
    atomic.write_text(
        stage_file(folder, step, 0).parent / MANIFEST, json.dumps({"step": step, "sha256": list(digests)})
    )
    for old in complete(folder)[:-keep]:
        doomed = stage_file(folder, old, 0).parent
        (doomed / MANIFEST).unlink()
        shutil.rmtree(doomed)


def digests(folder: Path, step: int) -> list[str]:
    """The SHA-256 of each stage's file. Raises: ShoestringError where the manifest is damaged."""
    path = stage_file(folder, step, 0).parent / MANIFEST
    manifest = read_json(path, dict, "an object") or {}
    found = manifest.get("sha256")
    if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
        raise ShoestringError(f"{path} is damaged: 'sha256' is not a list of checksums")
    if manifest.get("step") != step:
        raise ShoestringError(f"{path} is of step {manifest.get('step')!r}, and its folder's name says {step}")
    return found
