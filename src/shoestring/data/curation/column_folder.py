"""Columns on disk: made in parts that survive a kill, joined when the last is there, and found again by their key."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from shoestring import atomic
from shoestring.data.prepare import CACHE_TAG
from shoestring.errors import ShoestringError
from shoestring.json_files import read_json
from shoestring.locks import hold

ABOUT = "about.json"
ADVICE = "delete it and it will be made anew"

Arrays = Mapping[str, np.ndarray]


class ColumnFolder:
    """The columns of a cache, each in a folder named by its key.

    A column that is being made lies in `KEY.parts`, a file for each stretch of documents, named by its first and one past its
    last. Joined, each field is one `.npy` file that is mapped into memory, not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """While this process alone makes a column; another that wants the same one waits for it. The lock ends with the process."""
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.path / "CACHEDIR.TAG", CACHE_TAG)
        with hold(self.path / f".{key}.lock", wait="waiting for another process that makes the same column"):
            yield

    def read(self, key: str, documents: int) -> dict[str, np.ndarray] | None:
        """The fields of a column that is there whole; None where it is not. Raises: ShoestringError where it is damaged."""
        folder = self.path / key
        about = read_json(folder / ABOUT, dict, "an object")
        if about is None:
            return None
        found: dict[str, np.ndarray] = {}
        try:
            for name in about["fields"]:
                found[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShoestringError(f"{folder} is damaged ({error}): {ADVICE}") from None
        if any(len(field) != documents for field in found.values()):
            raise ShoestringError(f"{folder} is damaged: it is not of {documents:,} documents: {ADVICE}")
        return found

    def done(self, key: str) -> int:
        """How many documents the parts of a column hold, from the first on without a gap."""
        return self._parts(key)[-1][1] if self._parts(key) else 0

    def _parts(self, key: str) -> list[tuple[int, int, Path]]:
        """(first, one past the last, file) of each part, in order, up to the first gap."""
        found = list[tuple[int, int, Path]]()
        for path in (self.path / f"{key}.parts").glob("*.safetensors"):
            bounds = path.stem.split("-")
            if len(bounds) == 2 and all(bound.isdigit() for bound in bounds):
                found.append((int(bounds[0]), int(bounds[1]), path))
        joined, reached = [], 0
        for first, stop, path in sorted(found):
            if first == reached and stop > first:
                joined.append((first, stop, path))
                reached = stop
        return joined

    def add(self, key: str, first: int, fields: Arrays) -> None:
        """Keep a part: the documents from `first` on."""
        count = len(next(iter(fields.values())))
        plain = {name: np.ascontiguousarray(value) for name, value in fields.items()}
        atomic.write_bytes(self.path / f"{key}.parts" / f"{first:012d}-{first + count:012d}.safetensors", save(plain))

    def join(self, key: str, about: Mapping[str, object]) -> None:
        """Make the whole column of its parts, which go. about: what it is, for people."""
        parts = self._parts(key)
        names: list[str] = []
        with atomic.directory(self.path / key) as half:
            for first, stop, path in parts:
                with _opened(path) as file:
                    names = names or sorted(file.keys())
                    for name in names:
                        values = file.get_tensor(name)
                        if not first:
                            shape = (parts[-1][1], *values.shape[1:])
                            np.lib.format.open_memmap(half / f"{name}.npy", "w+", values.dtype, shape).flush()
                        whole = np.load(half / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
                        whole[first:stop] = values
                        whole.flush()
                        del whole
            (half / ABOUT).write_text(json.dumps({"fields": names, **about}, indent=2) + "\n")
        shutil.rmtree(self.path / f"{key}.parts", ignore_errors=True)

    def write(self, key: str, fields: Arrays, about: Mapping[str, object]) -> None:
        """Keep a column that was made in one piece."""
        with atomic.directory(self.path / key) as half:
            for name, value in fields.items():
                np.save(half / f"{name}.npy", value, allow_pickle=False)
            (half / ABOUT).write_text(json.dumps({"fields": sorted(fields), **about}, indent=2) + "\n")

    def about(self, key: str) -> dict[str, Any]:
        """What was said of a column that is there whole."""
        return dict(read_json(self.path / key / ABOUT, dict, "an object") or {})


def _opened(path: Path) -> "safetensors.safe_open":
    try:
        return safetensors.safe_open(path, "numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise ShoestringError(f"{path} is damaged ({error}): {ADVICE}") from None
