"""An adapter as peft has it, in memory: under the names of transformers' modules.

Where a native model has several matrices of transformers as one, a file's adapters are parts of its rows: `MatrixPart` says which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoestring.errors import UsageError

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"


class MatrixPart(NamedTuple):
    """A matrix of transformers, and where its rows are in a model here.

    theirs: the name of its module there. ours: of the module here.
    start, rows: its rows. None: all. order: [rows] int64, row i here is row order[i] there; None: the same order.
    """

    theirs: str
    ours: str
    start: int = 0
    rows: int | None = None
    order: Tensor | None = None

    def take(self, whole: Tensor) -> Tensor:
        """Its rows of a tensor whose first dimension is that of the outputs, in their order."""
        part = whole if self.rows is None else whole[self.start : self.start + self.rows]
        if self.order is None:
            return part
        theirs = torch.empty_like(part)
        theirs[self.order] = part
        return theirs

    def put(self, whole: Tensor, given: Tensor) -> None:
        """The reverse of `take`. Raises: UsageError where the sizes differ."""
        here = whole if self.rows is None else whole[self.start : self.start + self.rows]
        if given.shape != here.shape:
            raise UsageError(f"'{self.theirs}' has {list(given.shape)} where the model has {list(here.shape)}")
        here.copy_(given if self.order is None else given[self.order])


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter as peft has it.

    settings: of adapter_config.json. tensors: by the name of a module of transformers, then by the tensor's own:
    'lora_A.weight'.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]

    def refuse(self, allowed: Mapping[str, Any]) -> None:
        """Raises: UsageError where a setting asks for something that is not here.

        allowed: of each setting that changes what is computed, the value it must have; all that is false is as if absent.
        """
        for key, value in allowed.items():
            found = self.settings.get(key)
            if found != value and (found or value):
                raise UsageError(f"{SETTINGS}: {key} = {str(found)[:60]} is not known here")


def parts_of(name: str, parts: Sequence[MatrixPart]) -> list[MatrixPart]:
    """The matrices of transformers that one of ours holds. Raises: UsageError where there is none."""
    found = [part for part in parts if part.ours == name]
    if not found:
        raise UsageError(f"{name} is no matrix of a model of transformers: its adapter has no place in a file of peft")
    return found


def common(adapted: Sequence[str], parts: Sequence[MatrixPart]) -> list[str]:
    """The names of modules as `target_modules`: the last words alone, where these name the adapted modules and no other."""
    last = {name.rpartition(".")[2] for name in adapted}
    named = {part.theirs for part in parts if part.theirs.rpartition(".")[2] in last}
    return sorted(last) if named == set(adapted) else sorted(adapted)
