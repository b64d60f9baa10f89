"""A safetensors file that says what it is: its metadata has the one key `shoestring`, JSON with a format, a version, what else
there is to say, and a SHA-256 of all that and of every tensor."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shoestring.errors import ShoestringError, UsageError, first_line

KEY = "shoestring"


class DescribedFormat(NamedTuple):
    """name, version: as the file says them. what: as messages do: 'quantised model'."""

    name: str
    version: int
    what: str

    def content(self, said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
        """The bytes of a file. said: JSON values."""
        described = {"format": self.name, "version": self.version, **said}
        described["sha256"] = digest(described, tensors)
        return save(dict(tensors), {KEY: json.dumps(described)})

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(what a file says, its tensors). Nothing in it is trusted.

        Raises: UsageError where there is none; ShoestringError, in one line, where it is cut short, damaged, or of another kind.
        """
        described, tensors = self._opened(path)
        plain = {key: value for key, value in described.items() if key != "sha256"}
        if digest(plain, tensors) != described.get("sha256"):
            raise ShoestringError(f"{path} is damaged: its checksum is not the one recorded")
        return plain, tensors

    def _opened(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(path, "pt") as file:
                described = self._described(path, file.metadata())
                names = list(file.keys())
                if not all(name.isprintable() for name in names):
                    raise ShoestringError(f"{path} has a tensor without a name that can be read")
                # copied: memory of our own is aligned for the kernels, and does not change with the file
                return described, {name: file.get_tensor(name).clone() for name in names}
        except FileNotFoundError:
            raise UsageError(f"no such file: {path}") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise ShoestringError(f"{path} is cut short, damaged or no safetensors file: {first_line(error)}") from None

    def _described(self, path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
        try:
            described = json.loads((metadata or {})[KEY])
        except (KeyError, ValueError, RecursionError):
            described = None
        if not isinstance(described, dict) or described.get("format") != self.name:
            raise ShoestringError(f"{path} is no {self.what}: its metadata does not say '{self.name}'")
        if described.get("version") != self.version:
            version = described.get("version")
            raise ShoestringError(f"{path} has version {version!r}, this program reads version {self.version}")
        return described


def digest(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of what is said and of every tensor."""
    whole = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        whole.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        whole.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
