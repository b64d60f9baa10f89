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

MANIFEST = "manifest.json"


def stage_file(folder: Path, step: int, stage: int) -> Path:
    return folder / f"step-{step:08d}" / f"stage-{stage}.safetensors"


def complete(folder: Path) -> list[int]:
    """The steps whose checkpoints are complete, oldest first."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.glob(f"step-*/{MANIFEST}"))


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
    try:
        return [str(digest) for digest in json.loads(path.read_text())["sha256"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShoestringError(f"{path} is damaged: {error}") from None
