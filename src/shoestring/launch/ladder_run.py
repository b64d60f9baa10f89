"""One run of a ladder, as a job: begun, or gone on with from its last checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shoestring.errors import ShoestringError, UsageError
from shoestring.launch.launch import Launch
from shoestring.launch.request import TrainingRequest
from shoestring.train.run_folder import RunFolder
from shoestring.train.stopping import stop_with_parent


def train(asked: Any, folder: Path | None) -> dict[str, Any]:
    """The `Work` of a run.

    asked: 'recipe', plain values; 'threads', of the processor, 0 for torch's own number.
    Returns 'signal', that stopped it, or None; or 'failed' or 'refused', with the reason.
    """
    assert folder is not None
    stop_with_parent()
    use(asked["threads"])
    try:
        with Launch() as launch:
            if folder.is_dir() and RunFolder(folder).begun and any((folder / "checkpoints").glob("step-*")):
                ended = launch.resume(folder)
            else:
                # killed before its first checkpoint: there is nothing to go on with
                shutil.rmtree(folder, ignore_errors=True)
                request = replace(TrainingRequest.of(asked["recipe"]), learns=False)
                ended = launch.begin(request, folder)
    except UsageError as error:
        return {"refused": str(error)}
    except ShoestringError as error:
        return {"failed": str(error)}
    return {"signal": ended.outcome.signal}


def use(threads: int) -> None:
    """Have torch compute with so many threads; 0: as many as it does."""
    if threads:
        torch.set_num_threads(threads)
