"""What of a quantisation is done, in a folder: a file a step, each whole or not there, so that a killed one goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from shoestring import atomic
from shoestring.errors import ShoestringError

Step = tuple[dict[str, Any], dict[str, Tensor]]
"""JSON values, and tensors by name."""


class QuantiseProgress:
    """Steps by name. folder: where they are. about: of what they are steps: those of another quantisation are not taken."""

    def __init__(self, folder: Path, about: str) -> None:
        self.folder, self.about = folder, about

    def read(self, name: str) -> Step | None:
        """A step that was kept; None where it was not, or by a quantisation of other things. Raises: ShoestringError."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {}).get("step", "{}"))
                if not isinstance(told, dict) or told.get("about") != self.about:
                    return None
                tensors = {key: file.get_tensor(key).clone() for key in file.keys() if key != "_"}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ShoestringError(f"{path} is damaged: {' '.join(str(error).split())}: remove it") from None
        values = told.get("values")
        return (values, tensors) if isinstance(values, dict) else None

    def write(self, name: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep a step, whole or not at all."""
        content = {key: one.detach().cpu().contiguous() for key, one in tensors.items()} or {"_": torch.zeros(1)}
        told = json.dumps({"about": self.about, "values": dict(values)})
        atomic.write_bytes(self.folder / f"{name}.safetensors", save(content, {"step": told}))
