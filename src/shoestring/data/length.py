"""The interface of a method of kind 'length': how long the rows of a step are, as a run goes on; and rows cut to that length."""

from typing import Protocol

import torch

from shoestring.contract.batch import Batch, Inputs
from shoestring.data.stream import ChangedStream, Stream
from shoestring.errors import UsageError


class LengthSchedule(Protocol):
    """Is made of the context and of its options."""

    def lengths(self) -> tuple[int, ...]:
        """All lengths that occur. Each divides the context."""
        ...

    def __call__(self, step: int, progress: float) -> int:
        """The length of the rows of a step. progress: spent share of the budget."""
        ...


def require_divisor(length: int, context: int, what: str) -> int:
    """The length. Raises: UsageError where rows of `context` places cannot be cut into rows of it."""
    if not 1 <= length <= context or context % length:
        raise UsageError(
            f"{what} = {length}: rows of model.context = {context} places are cut into equal parts: give a divisor"
        )
    return length


def cut(batch: Batch, length: int) -> Batch:
    """Each row of T places as T / length rows, in order: as many tokens, less of them seen together. Positions begin anew.

    Where its rows are as long already, the batch itself. Raises: UsageError where they are no multiple of `length`, or have a
    mask or padding of their own.
    """
    places = batch.inputs.length
    if places == length:
        return batch
    inputs = batch.inputs
    if places % length or inputs.mask is not None or inputs.lengths is not None:
        raise UsageError(f"rows of {places} places cannot be cut into rows of {length}")
    parts = places // length

    def rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.reshape(tensor.shape[0] * parts, length, *tensor.shape[2:])

    positions, documents = rows(inputs.positions), rows(inputs.documents)
    if positions is not None:  # a document that the cut goes through is counted from there
        began = positions[:, :1]
        same = torch.ones_like(positions, dtype=torch.bool) if documents is None else documents == documents[:, :1]
        positions = torch.where(same, positions - began, positions)
    values, targets = rows(inputs.values), rows(batch.targets)
    assert values is not None
    assert targets is not None
    extra = {}
    for name, tensor in batch.extra.items():
        whole = tensor.ndim >= 2 and tensor.shape[1] == places
        found = rows(tensor) if whole else tensor.repeat_interleave(parts, dim=0)
        assert found is not None
        extra[name] = found
    return Batch(Inputs(values, positions, documents), targets, rows(batch.weights), extra)


class Shaped(ChangedStream):
    """A stream whose rows are cut to the length that a schedule says: as many tokens a step at any length.

    The number of sequences counts whole rows, so what is read next does not hang on the schedule: there is nothing more to keep.
    sequences: whole rows of a step.
    """

    def __init__(self, stream: Stream, schedule: LengthSchedule, sequences: int) -> None:
        super().__init__(stream)
        self.schedule, self.sequences = schedule, sequences

    def take(self, start: int, count: int, progress: float) -> Batch:
        step = start // self.sequences
        return cut(self.stream.take(start, count, progress), self.schedule(step, progress))
