"""The candidate of time_to_loss.py: `shoestring train` with a budget in seconds, run as a user runs it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shoestring.budget.machine import cache_folder
from shoestring.model.config import ModelConfig


def own_caches(folder: Path) -> dict[str, str]:
    """An environment with caches in `folder`: the prepared corpus and the machine's probe are there, as the baseline has
    them too, but nothing that earlier runs decided or compiled."""
    ours = folder / "shoestring"
    ours.mkdir()
    for entry in cache_folder().resolve().iterdir():
        if not entry.name.startswith("timings-") and entry.name != "compiled":
            (ours / entry.name).symlink_to(entry)
    return {"SHOESTRING_CACHE": str(ours), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}


def train(model: ModelConfig, folder: Path, *, seed: int, budget: float, warm: bool) -> tuple[dict[str, Any], float]:
    """(the run's summary.json, seconds from the start of the process to its end). The run is in `folder` then.

    model: its shape is given, all else is planned. warm: with the caches as they are. Raises: SystemExit, with what
    the run printed, when it fails.
    """
    words = [sys.executable, "-m", "shoestring", "train", "--budget", f"{budget:g}s", "--out", str(folder)]
    given = {f"model.{name}": getattr(model, name) for name in ("layers", "width", "heads", "head_width", "context")}
    given["seed"] = seed
    words += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory() as caches:
        surroundings = os.environ | ({} if warm else own_caches(Path(caches)))
        start = time.monotonic()
        ended = subprocess.run(words, env=surroundings, capture_output=True, text=True, check=False)
        process = time.monotonic() - start
    if ended.returncode:
        raise SystemExit(f"{' '.join(words)}\nended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return json.loads((folder / "summary.json").read_text()), process
