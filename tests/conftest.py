"""Shared by all tests: two threads, and a cache of their own, never the user's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.set_num_threads(min(2, torch.get_num_threads()))
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOESTRING_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a hundred short text files with structure enough for a loss to fall."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(100):
        lines = [f"line {place} of text {number}: {'abc' * (1 + (number + place) % 5)}\n" for place in range(20)]
        (folder / f"{number:03}.txt").write_text("".join(lines))
    return folder
