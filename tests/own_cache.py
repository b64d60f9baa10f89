"""A cache of a test's own."""

import shutil
from pathlib import Path

import pytest

from shoestring.budget.machine import cache_folder, probe


def own_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """An empty one but for what this machine can do, which takes seconds to measure: once for all tests of a process."""
    probe()
    folder.mkdir(parents=True, exist_ok=True)
    for known in cache_folder().glob("machine-*.json"):
        shutil.copy2(known, folder)
    patch.setenv("SHOESTRING_CACHE", str(folder))
