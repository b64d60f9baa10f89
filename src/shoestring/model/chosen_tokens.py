"""Some of the tokens of a pass go through layers by themselves: what these are told, and what is kept of them."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from shoestring.contract.cache import PackedPass, Pass
from shoestring.errors import UsageError
from shoestring.model.span import Where


class ChosenTokens:
    """The state of a layer that some tokens go through: `inner` counts those alone.

    lengths: tokens of each row that went through.
    """

    rewindable = False

    def __init__(self, inner: Any, lengths: Sequence[int] | None) -> None:
        self.inner, self.lengths = inner, None if lengths is None else list(lengths)
        self.coming: Pass | None = None

    @property
    def nbytes(self) -> int:
        return int(self.inner.nbytes)

    def begin(self, coming: Pass) -> None:
        if isinstance(coming, PackedPass):
            raise UsageError(
                "layers that some tokens go through cannot read rows packed in one: give one sequence a row"
            )
        if coming.mask is not None:
            raise UsageError("layers that some tokens go through take no mask")
        self.coming = coming
        if self.lengths is None:
            self.lengths = [0] * len(coming.new)

    def go(self, new: list[int], device: torch.device) -> None:
        """So many tokens of each row go through in this pass."""
        assert self.lengths is not None
        self.inner.begin(Pass(self.lengths, new, max(new), None, device))
        self.lengths = [held + more for held, more in zip(self.lengths, new, strict=True)]

    def take(self, rows: Tensor) -> Self:
        lengths = None if self.lengths is None else [self.lengths[row] for row in rows.tolist()]
        return type(self)(self.inner.take(rows), lengths)

    def crop(self, lengths: Sequence[int]) -> None:
        raise UsageError(
            "which tokens went through a layer is not kept, so that none can be forgotten: restore a snapshot"
        )

    def snapshot(self) -> Any:
        return None if self.lengths is None else list(self.lengths), self.inner.snapshot()

    def restore(self, snapshot: Any) -> None:
        lengths, inner = snapshot
        self.lengths = None if lengths is None else list(lengths)
        self.inner.restore(inner)


def where_of(where: Where, places: Tensor, length: int, counts: Tensor | None = None) -> Where:
    """What the tokens at these places [B, k] of a pass of `length` are told.

    counts: [B], how many of them go through, in each row; the others fill it up, and are seen by nobody. None: all.
    """
    rows = torch.arange(len(places), device=places.device)[:, None]

    def taken(table: Tensor) -> Tensor:
        return table[places] if table.ndim == 3 else table[rows, places]

    tables = tuple((taken(cos), taken(sin)) for cos, sin in where.tables)
    mask = where.mask
    if mask is not None:
        whole = mask.expand(len(places), 1, length, length)
        mask = whole[rows[..., None, None], 0, places[:, None, :, None], places[:, None, None, :]]
        if counts is not None:
            count = torch.arange(places.shape[1], device=places.device)
            own = count[:, None] == count  # a place sees itself, so that its sum is one
            mask = mask & ((count < counts[:, None])[:, None, None, :] | own)

    def at(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.gather(1, places)

    return Where(tables, mask, at(where.documents), values=at(where.values))
