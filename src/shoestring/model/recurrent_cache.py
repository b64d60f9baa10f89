"""The running state of a token mixer: a few tensors of each row, however long it is."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from shoestring.contract.cache import PackedPass, Pass
from shoestring.errors import UsageError


def require_order(coming: Pass | PackedPass) -> None:
    """Raises: UsageError for a pass that does not read the tokens of each row one after the other."""
    if isinstance(coming, PackedPass):
        raise UsageError("a layer with a state of its own cannot read rows packed in one: give one sequence a row")
    if coming.mask is not None:
        raise UsageError(
            "a layer with a state of its own reads tokens in order: it takes no mask, and so no tree of drafts"
        )


class Together(NamedTuple):
    """Rows of a pass that can be computed at once. rows: which. held: tokens of each from before. new: that are added."""

    rows: slice
    held: int
    new: int


def together(coming: Pass) -> list[Together]:
    """The rows of a pass that have any new token: all at once where they are alike, else one by one."""
    if coming.uniform:
        return [Together(slice(None), coming.longest, coming.length)]
    each = enumerate(zip(coming.held, coming.new, strict=True))
    return [Together(slice(row, row + 1), held, new) for row, (held, new) in each if new]


class RecurrentState:
    """The state of one layer that cannot rewind: take a snapshot to come back.

    tensors: by name, each with the rows first. The mixer reads them, and puts new ones in their place.
    """

    rewindable = False

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self._coming: Pass | None = None
        self._real: Tensor | None = None
        self.fresh = True
        """Whether no row has read anything."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def begin(self, coming: Pass) -> None:
        require_order(coming)
        self._coming, self._real = coming, None
        self.fresh = coming.longest == 0
        if min(coming.new) < coming.length:
            new = torch.tensor(coming.new, device=coming.device)
            self._real = torch.arange(coming.length, device=coming.device) < new[:, None]

    @property
    def coming(self) -> Pass:
        """The pass that was begun."""
        assert self._coming is not None
        return self._coming

    @property
    def real(self) -> Tensor | None:
        """[B, T] bool, which places of the pass are tokens and not padding; None: all."""
        return self._real

    def last(self, tensor: Tensor, count: int) -> Tensor:
        """The last `count` entries of each row of a sequence [B, count + T, ...] which has `count` entries before the pass, padding
        not among them."""
        if self._real is None:
            return tensor[:, tensor.shape[1] - count :].clone()
        new = self._real.sum(1)
        places = new[:, None] + torch.arange(count, device=tensor.device)
        index = places.view(*places.shape, *[1] * (tensor.ndim - 2)).expand(-1, -1, *tensor.shape[2:])
        return tensor.gather(1, index)

    def take(self, rows: Tensor) -> Self:
        made = type(self)({name: tensor[rows] for name, tensor in self.tensors.items()})
        made.fresh = self.fresh
        return made

    def crop(self, lengths: Sequence[int]) -> None:
        raise UsageError("a running state cannot forget single tokens: restore a snapshot")

    def snapshot(self) -> Any:
        return {name: tensor.clone() for name, tensor in self.tensors.items()}

    def restore(self, snapshot: Any) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in snapshot.items()}


class TokenMemory:
    """One vector of every token, [B, room, width], at the place of its position."""

    rewindable = True

    def __init__(self, held: Tensor) -> None:
        self._held = held
        self._coming: Pass | None = None

    @property
    def nbytes(self) -> int:
        return self._held.nbytes

    def begin(self, coming: Pass | PackedPass) -> None:
        require_order(coming)
        assert isinstance(coming, Pass)
        self._coming = coming

    @property
    def coming(self) -> Pass:
        """The pass that was begun."""
        assert self._coming is not None
        return self._coming

    def before(self, count: int) -> Tensor:
        """[B, count, width]: the vectors of the last `count` tokens before the pass; zeros where there were none."""
        held = torch.tensor(self.coming.held, device=self._held.device)
        at = held[:, None] + torch.arange(-count, 0, device=self._held.device)
        found = self._held.gather(1, at.clamp_min(0)[..., None].expand(-1, -1, self._held.shape[2]))
        return found * (at >= 0)[..., None]

    def append(self, new: Tensor) -> tuple[Tensor, Tensor | None]:
        """Take in new [B, T, width]. Returns all that is held [B, S, width], and who sees what, as `KeyValues.append` has it."""
        for rows, held, count in together(self.coming):
            self._held[rows, held : held + count] = new[rows, :count]
        return self._held[:, : self.coming.end].to(new.dtype), self._visible()

    def _visible(self) -> Tensor | None:
        seen = self.coming.visible
        return None if seen is None else seen[..., : self._held.shape[1]]

    def take(self, rows: Tensor) -> Self:
        return type(self)(self._held[rows])

    def crop(self, lengths: Sequence[int]) -> None:
        """Nothing to do: what follows a row's length is not seen, and is written over."""

    def snapshot(self) -> Any:
        """Nothing: what is held of the tokens up to a length does not change when more are read."""

    def restore(self, snapshot: Any) -> None:
        """Nothing, as above."""


class LayerStates:
    """The states of one layer: one for each time that it is gone through, or of different kinds."""

    def __init__(self, each: Sequence[Any]) -> None:
        self.each = list(each)

    @property
    def rewindable(self) -> bool:
        return all(one.rewindable for one in self.each)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.each)

    def begin(self, coming: Pass) -> None:
        if isinstance(coming, PackedPass):
            raise UsageError("a layer with several states cannot read rows packed in one: give one sequence a row")
        for one in self.each:
            one.begin(coming)

    def take(self, rows: Tensor) -> "LayerStates":
        return LayerStates([one.take(rows) for one in self.each])

    def crop(self, lengths: Sequence[int]) -> None:
        for one in self.each:
            one.crop(lengths)

    def snapshot(self) -> Any:
        return [one.snapshot() for one in self.each]

    def restore(self, snapshot: Any) -> None:
        for one, state in zip(self.each, snapshot, strict=True):
            one.restore(state)
