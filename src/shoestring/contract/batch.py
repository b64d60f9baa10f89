"""What a model may read, and what it is to learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""The target that no loss counts (the `ignore_index` of torch's cross-entropy)."""

HIDDEN = -1
"""The token id that stands for a token that is not shown. A model that `About.hides` reads a vector of its own there; no model
predicts it, as it is no token of the vocabulary."""


class Inputs(NamedTuple):
    """All that a model reads; never a target.

    values: token ids [B, T] int64, `HIDDEN` for one that is not shown, or numbers [B, T, K].
    positions: [B, T] int64, each below the context. None: counted from the start of the row, or from what its cache holds.
    documents: [B, T] int64, equal where two places of a row may see each other. None: all may.
    lengths: [B] int64, how many places of a row are there; the rest of the row is padding. None: all are.
    mask: [B, T, T] bool, True where a place sees another of this pass. None: itself and those before it, or all of them where the
        model is not causal (`About.causal`).
    """

    values: Tensor
    positions: Tensor | None = None
    documents: Tensor | None = None
    lengths: Tensor | None = None
    mask: Tensor | None = None

    @property
    def rows(self) -> int:
        """B, the number of sequences."""
        return self.values.shape[0]

    @property
    def length(self) -> int:
        """T, the places of a sequence, padding included."""
        return self.values.shape[1]

    def take(self, rows: slice | Tensor) -> "Inputs":
        """These rows alone."""
        return Inputs(*(None if tensor is None else tensor[rows] for tensor in self))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Inputs":
        """The same on another device."""
        return Inputs(*(None if tensor is None else moved(tensor, device) for tensor in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batch:
    """Sequences to learn from. The rows are the first dimension of every tensor.

    inputs: what the model reads.
    targets: [B, T] int64, `IGNORED` where none is to be predicted.
    weights: [B, T] float, what each target counts. None: all count the same.
    extra: what one objective needs beside these, by name ('advantage', 'domain').
    """

    inputs: Inputs
    targets: Tensor
    weights: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """The number of targets that count."""
        return int((self.targets != IGNORED).sum())

    @property
    def rows(self) -> int:
        """B, the number of sequences."""
        return self.inputs.rows

    def take(self, rows: slice | Tensor) -> "Batch":
        """These rows alone."""
        return Batch(
            self.inputs.take(rows),
            self.targets[rows],
            None if self.weights is None else self.weights[rows],
            {name: tensor[rows] for name, tensor in self.extra.items()},
        )

    @staticmethod
    def joined(parts: "Sequence[Batch]") -> "Batch":
        """The rows of several batches, one after the other. They have the same fields and the same length."""
        if len(parts) == 1:
            return parts[0]

        def join(tensors: "Sequence[Tensor | None]") -> Tensor | None:
            there = [tensor for tensor in tensors if tensor is not None]
            if there and len(there) < len(tensors):
                raise ValueError("batches that are joined have the same fields")
            return torch.cat(there) if there else None

        inputs = Inputs(*(join(tensors) for tensors in zip(*(part.inputs for part in parts), strict=True)))  # type: ignore[arg-type]
        weights = join([part.weights for part in parts])
        names = parts[0].extra.keys()
        extra = {name: torch.cat([part.extra[name] for part in parts]) for name in names}
        return Batch(inputs, torch.cat([part.targets for part in parts]), weights, extra)

    def split(self, size: int) -> "list[Batch]":
        """Micro-batches of `size` rows; the last has what is left."""
        if size >= self.rows:
            return [self]
        return [self.take(slice(start, start + size)) for start in range(0, self.rows, size)]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.inputs.to(device),
            moved(self.targets, device),
            None if self.weights is None else moved(self.weights, device),
            {name: moved(tensor, device) for name, tensor in self.extra.items()},
        )

    def padded(self, rows: int) -> "Batch":
        """The batch with rows added that are read and count nothing, so that it has a shape that was compiled already."""
        missing = rows - self.rows
        if missing <= 0:
            return self

        def pad(tensor: Tensor, value: int = 0) -> Tensor:
            return torch.cat([tensor, tensor.new_full((missing, *tensor.shape[1:]), value)])

        whole = self.inputs
        if whole.lengths is not None:  # a row of padding alone would see nothing
            whole = whole._replace(lengths=pad(whole.lengths, 1))
        inputs = Inputs(
            *(
                tensor if tensor is None or name == "lengths" else pad(tensor, int(name == "mask"))
                for name, tensor in zip(Inputs._fields, whole, strict=True)
            )  # type: ignore[arg-type]
        )
        return replace(
            self,
            inputs=inputs,
            targets=pad(self.targets, IGNORED),
            weights=None if self.weights is None else pad(self.weights),
            extra={name: pad(tensor) for name, tensor in self.extra.items()},
        )


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """`tensor` on `device`. From pinned memory, a copy does not wait for what the GPU was given before it."""
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
